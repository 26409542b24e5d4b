"""Redis or Valkey: one server, a cluster, or the primary that Sentinels name."""
