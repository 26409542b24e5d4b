"""Traces: spans of requests, calls, statements and hashing (the extra `otel`).

Only sdk.py and stores.py need the packages of the extra.
"""
