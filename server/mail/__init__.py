"""Sending e-mails: texts, messages, and delivery by SMTP or into files."""
