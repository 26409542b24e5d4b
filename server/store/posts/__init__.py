"""Posts and categories in Postgres."""
