"""UserService: accounts, batches of accounts, and personal data."""
