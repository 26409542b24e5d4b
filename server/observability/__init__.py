"""Structured logs and the redaction of secrets in them."""
