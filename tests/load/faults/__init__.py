"""Reliability experiments with real processes, signals and a TCP fault proxy."""
