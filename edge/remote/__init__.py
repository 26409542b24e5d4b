"""A service in another process: its calls in batches, and its outages."""
