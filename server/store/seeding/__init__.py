"""Made-up members for load tests, in any number."""
