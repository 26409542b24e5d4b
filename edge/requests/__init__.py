"""From an HTTP request to the request message."""
