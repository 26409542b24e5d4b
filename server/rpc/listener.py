"""The services over gRPC: the chain in its order, and the server that listens.

Handlers take and give bytes: requests are decoded inside the chain, because
grpc.aio answers undecodable bytes with UNKNOWN and the exception's name.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from server.domain.audit import AuditStore
from server.domain.clock import Clock
from server.domain.idempotency import Idempotency
from server.domain.limits import Limiter
from server.rpc.addresses import TrustedProxies, peer_address
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Proceed,
    Stream,
    chained,
)
from server.rpc.contract import ContractError, RateRule, methods, rate_rules
from server.rpc.interceptors.audit import audited
from server.rpc.interceptors.auth import Learn, Verify, authorized
from server.rpc.interceptors.errors import failing
from server.rpc.interceptors.idempotency import idempotent
from server.rpc.interceptors.logging import logged
from server.rpc.interceptors.rate_limit import rate_limited
from server.rpc.interceptors.validation import validated

KIB = 1024
MIB = 1024 * KIB
MAX_METADATA = 16 * KIB  # bytes
Context = grpc.aio.ServicerContext[bytes, bytes]
STATUS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # a second server on the port is a mistake to hear of
    ("grpc.max_receive_message_length", 1 * MIB),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.max_concurrent_streams", 256),
)
MOST_CALLS = 2_000  # at once, over all connections


@dataclass(frozen=True, slots=True)
class ChainDependencies:
    """What the chain asks; the composition root fills it."""

    verify: Verify
    learn: Learn
    limiter: Limiter
    idempotency: Idempotency
    audit: AuditStore
    clock: Clock
    rates: Mapping[str, Sequence[RateRule]]


def chain(method: Method, dependencies: ChainDependencies) -> list[Interceptor]:
    """Give one RPC's interceptors, the outermost first."""
    rules = rate_rules(method, dependencies.rates)
    order = [
        logged,  # sees the final code and the whole time
        audited(
            method, dependencies.audit, dependencies.clock
        ),  # sees the final reason
        failing,  # the only place a status is made
        authorized(
            method, dependencies.verify, dependencies.learn
        ),  # before anything is spent on the caller
        rate_limited(
            method, rules, dependencies.limiter
        ),  # knows the caller; no hashing yet
        validated,  # behind the rates, so that probing costs, too
        idempotent(
            method, dependencies.idempotency, dependencies.clock
        ),  # its answers are of valid calls
    ]
    return [interceptor for interceptor in order if interceptor]


def serve_methods(
    servicers: Mapping[str, Sequence[object]], dependencies: ChainDependencies
) -> dict[str, tuple[Method, Proceed]]:
    """Give every RPC of the contract, by path, wrapped in its chain.

    `servicers` are by service name, which several may share. Raises ContractError
    naming an RPC that none or two of them implement, or whose policy cannot be
    enforced.
    """
    served = {}
    for method in methods():
        service, _, name = method.name.partition("/")
        handler = _handler(method, servicers.get(service, ()), name)
        served[method.path] = (
            method,
            chained(chain(method, dependencies), _terminal(method, handler)),
        )
    return served


def _handler(
    method: Method, servicers: Sequence[object], name: str
) -> Callable[..., Any]:
    implementing = [servicer for servicer in servicers if hasattr(servicer, name)]
    if not implementing:
        raise ContractError(f"{method.name}: no servicer implements it")
    if len(implementing) > 1:
        classes = " and ".join(type(servicer).__name__ for servicer in implementing)
        raise ContractError(f"{method.name}: implemented by {classes}")
    handler: Callable[..., Any] = getattr(implementing[0], name)
    return handler


def _terminal(method: Method, handler: Callable[..., Any]) -> Proceed:
    async def unary(call: Call) -> Outcome:
        reply: Message = await handler(call.request, call)
        return reply.SerializeToString()

    async def stream(call: Call) -> Outcome:
        return _serialized(handler(call.request, call))

    return stream if method.streams else unary


async def _serialized(messages: AsyncGenerator[Message, None]) -> Stream:
    async with aclosing(messages):
        async for message in messages:
            yield message.SerializeToString()


class Listener:
    """Makes calls of what arrives over gRPC."""

    def __init__(self, proxies: TrustedProxies) -> None:
        self._proxies = proxies

    def handlers(
        self, served: Mapping[str, tuple[Method, Proceed]]
    ) -> list[grpc.GenericRpcHandler]:
        """Give gRPC's handlers, a service each."""
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method, proceed in served.values():
            service, _, name = method.name.partition("/")
            make = self._stream if method.streams else self._unary
            by_service.setdefault(service, {})[name] = make(method, proceed)
        return [
            grpc.method_handlers_generic_handler(service, handlers)
            for service, handlers in by_service.items()
        ]

    def _unary(
        self, method: Method, proceed: Proceed
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(body: bytes, context: Context) -> bytes:
            call = self._call(method, body, context)
            try:
                return cast(bytes, await proceed(call))
            except Failure as failure:
                await _abort(context, call, failure)
                raise

        return grpc.unary_unary_rpc_method_handler(cast(Any, handle))

    def _stream(
        self, method: Method, proceed: Proceed
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(body: bytes, context: Context) -> None:
            # written one by one, not given as a generator, which grpc.aio would leave
            # for the garbage collector to close when a client is gone
            call = self._call(method, body, context)
            try:
                outcome = await proceed(call)
                async with aclosing(cast(Stream, outcome)) as messages:
                    async for message in messages:
                        await context.write(message)
            except Failure as failure:
                await _abort(context, call, failure)

        return grpc.unary_stream_rpc_method_handler(cast(Any, handle))

    def _call(self, method: Method, body: bytes, context: Context) -> Call:
        metadata = context.invocation_metadata() or ()
        peer = peer_address(context.peer())
        call = incoming(
            method, body, metadata, peer, self._proxies.covers(peer), self._proxies
        )
        call.timeout = context.time_remaining()
        return call


def incoming(
    method: Method,
    body: bytes,
    pairs: Iterable[tuple[str, str | bytes]],
    peer: str,
    trusted: bool,
    proxies: TrustedProxies,
) -> Call:
    """Give the call; only a trusted peer may name the client and the request."""
    given = tuple(pairs)
    metadata = dict(given)
    if len(metadata) < len(given) and _repeated(given, "authorization"):
        metadata["authorization"] = b"repeated"  # whichever a proxy checked: neither
    address, request_id = peer, ""
    if trusted:
        address = proxies.client(str(metadata.get("x-forwarded-for", ""))) or peer
        request_id = str(metadata.get("x-request-id", ""))
    return Call(method, body, metadata, address, request_id or os.urandom(16).hex())


def _repeated(pairs: Iterable[tuple[str, str | bytes]], name: str) -> bool:
    return sum(key == name for key, _ in pairs) > 1


async def _abort(context: Context, call: Call, failure: Failure) -> None:
    """Tell the failure, and the id to look it up by; that costs too much of others."""
    trailers = (("x-request-id", call.request_id), (STATUS, failure.status))
    await context.abort(_CODES[failure.code], failure.message, trailers)


def grpc_server(
    handlers: Iterable[grpc.GenericRpcHandler],
) -> grpc.aio.Server:
    """Give a server with these handlers; it does not listen yet."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MOST_CALLS)
    server.add_generic_rpc_handlers(tuple(handlers))
    return server
