"""Accounts in Postgres, and the cache before them."""
