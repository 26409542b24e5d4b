"""Alembic migrations: additive first, so that old and new code run side by side."""
