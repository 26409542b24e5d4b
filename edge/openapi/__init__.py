"""The OpenAPI 3.1 document of the bindings that also route the requests."""

from edge.openapi.document import describe, document

__all__ = ["describe", "document"]
