"""From a reply or an error to the HTTP response."""
