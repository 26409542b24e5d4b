"""The servicers of AuthService."""
