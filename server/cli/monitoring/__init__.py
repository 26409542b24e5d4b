"""Reads the metrics of a running server, for `academy top` and `academy doctor`."""
