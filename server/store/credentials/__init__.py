"""What people and services prove themselves with, in Postgres."""
