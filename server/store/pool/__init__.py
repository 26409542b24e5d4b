"""Parts of the pool of connections to Postgres, which `connections.connect` joins."""
