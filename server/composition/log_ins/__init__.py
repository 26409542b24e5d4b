"""Second factors and other ways to log in, one module per feature."""
