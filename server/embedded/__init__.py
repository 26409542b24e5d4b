"""Postgres and Valkey from Python wheels, for `academy up` and the tests."""
