"""The rules of AuthService: log-in, recovery, revocations."""
