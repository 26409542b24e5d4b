"""Counts calls of methods that the server does not have."""

from __future__ import annotations

import grpc

from server.observability.metrics.calls import CallMetrics


class UnknownMethods(grpc.GenericRpcHandler):
    """The last handler of a server: counts a call, and leaves the answer to gRPC."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    def service(self, _: grpc.HandlerCallDetails) -> None:
        """Count a call that no other handler serves; gRPC answers UNIMPLEMENTED."""
        self._metrics.count_unknown("grpc")
