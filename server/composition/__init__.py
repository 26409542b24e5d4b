"""Builds the application: one module per feature, folded by build_application()."""
