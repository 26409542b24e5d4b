"""Real Postgres and Valkey for `academy up` and the tests, out of wheels."""
