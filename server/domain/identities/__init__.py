"""Log-ins with identity providers (OpenID Connect), and linked identities."""
