"""Generated clients against a running service: compiled strictly, without casts."""
