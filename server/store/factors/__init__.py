"""Second factors, challenges and identities in Postgres."""
