"""Counts and logs calls of methods that the server does not have."""

from __future__ import annotations

import grpc

from server.observability.metrics.calls import CallMetrics
from server.rpc.interceptors.logging import record_unknown_call


class UnknownMethods(grpc.GenericRpcHandler):
    """The last handler of a server: records a call, and leaves the answer to gRPC."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    def service(self, _: grpc.HandlerCallDetails) -> None:
        """Record a call that no other handler serves; gRPC answers UNIMPLEMENTED."""
        record_unknown_call(self._metrics, "grpc")
