"""Accounts: the rules of signing up, reading, changing, erasing and watching them."""
