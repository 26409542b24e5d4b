"""Reads by a replica of Postgres: which it may serve, and how far it is behind."""
