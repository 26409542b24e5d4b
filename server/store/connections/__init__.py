"""Connections to Postgres and Redis: their URLs, limits, timeouts and faults."""
