"""From a request's path and method to the binding that serves it."""
