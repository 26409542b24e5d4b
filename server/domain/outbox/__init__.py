"""Outbox entries and the e-mails composed from them."""
