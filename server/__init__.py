"""The academy's services: contracts in, Postgres and Redis behind."""
