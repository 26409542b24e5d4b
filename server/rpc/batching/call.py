"""One batched call: from the protocol of batching.proto through the chain and back."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import cast

import grpc

from batching.v1 import batching_pb2 as pb
from server.observability.metrics.calls import CallMetrics
from server.rpc.addresses import ProxyTrust, peer_address
from server.rpc.call import Failure, Method, Proceed
from server.rpc.grpc_server import MAX_METADATA_SIZE
from server.rpc.interceptors.logging import record_unknown_call
from server.rpc.listener import STATUS_DETAILS_KEY, build_call

_ENTRY_OVERHEAD = 32  # bytes, beside key and value (RFC 9113 6.5.2)
# gRPC over HTTP/2: Header-Name, ASCII-Value
_is_key = lru_cache(maxsize=1024)(re.compile(r"[0-9a-z_.-]+").fullmatch)
_ASCII_VALUE = re.compile(rb"[\x20-\x7e]*")
# Executes a call with the timeout that is left (seconds, or None) for a gRPC peer.
CallExecutor = Callable[[pb.Call, float | None, str], Awaitable[pb.CallResult]]


def call_executor(
    served: Mapping[str, tuple[Method, Proceed]],
    proxies: ProxyTrust,
    metrics: CallMetrics,
) -> CallExecutor:
    """Return what executes a batched call through the interceptor chain."""

    async def execute(
        batched: pb.Call,
        timeout: float | None,  # noqa: ASYNC109 - the chain enforces it
        peer: str,
    ) -> pb.CallResult:
        method, proceed = served.get(batched.method, (None, None))
        if method is None or proceed is None or method.streams:
            record_unknown_call(metrics, "batch")
            text = f"unknown method: {batched.method}"
            return error_result(batched.id, grpc.StatusCode.UNIMPLEMENTED, text)
        try:
            metadata = [*_metadata(batched.metadata)]
        except ValueError as error:
            return error_result(
                batched.id, grpc.StatusCode.INVALID_ARGUMENT, str(error)
            )
        address = peer_address(peer)
        trusted = proxies.covers(address)
        call = build_call(
            method, batched.message, metadata, address, trusted, proxies, "batch"
        )
        call.timeout = timeout
        try:
            response = cast(bytes, await proceed(call))
        except Failure as failure:
            return _failure(batched.id, failure, call.request_id)
        return pb.CallResult(id=batched.id, message=response)

    return execute


def _metadata(entries: Sequence[pb.MetadataEntry]) -> Iterator[tuple[str, str | bytes]]:
    """Return what gRPC would have accepted as metadata. Raises ValueError."""
    size = len(entries) * _ENTRY_OVERHEAD
    for entry in entries:
        size += len(entry.key) + len(entry.value)
        if size > MAX_METADATA_SIZE:
            raise ValueError(f"metadata is larger than {MAX_METADATA_SIZE} bytes")
        if not _is_key(entry.key):
            raise ValueError("a metadata key may contain a-z, 0-9, '_', '-' and '.'")
        if entry.key.endswith("-bin"):
            yield entry.key, entry.value
        elif _ASCII_VALUE.fullmatch(entry.value):
            yield entry.key, entry.value.decode()
        else:
            raise ValueError(
                f"the value of the metadata key {entry.key} is not printable ASCII"
            )


def _failure(call_id: int, failure: Failure, request_id: str) -> pb.CallResult:
    return pb.CallResult(
        id=call_id,
        code=failure.code,
        error_message=failure.message,
        status=failure.status,
        trailers=[
            pb.MetadataEntry(key="x-request-id", value=request_id.encode()),
            pb.MetadataEntry(key=STATUS_DETAILS_KEY, value=failure.status),
        ],
    )


def error_result(call_id: int, code: grpc.StatusCode, message: str) -> pb.CallResult:
    """Return the result of a call that did not reach the chain."""
    return pb.CallResult(id=call_id, code=code.value[0], error_message=message)
