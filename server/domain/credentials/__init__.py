"""Credentials: passwords, tokens, sessions, and the keys behind them."""
