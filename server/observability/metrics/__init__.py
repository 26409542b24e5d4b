"""Metrics: their definitions, the counts of calls, the text that Prometheus reads."""
