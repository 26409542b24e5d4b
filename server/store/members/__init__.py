"""Profiles, settings, follows, counts and notifications in Postgres."""
