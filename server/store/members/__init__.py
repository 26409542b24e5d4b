"""Profiles, settings and follows in Postgres, and what is counted of them."""
