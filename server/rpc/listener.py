"""The services over gRPC: the interceptor chain, and calls as gRPC delivers them.

Handlers receive and return bytes. The chain decodes requests, because grpc.aio
responds to undecodable bytes with UNKNOWN and the name of the exception.
"""

from __future__ import annotations

import os
import re
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
from server.observability.metrics.calls import CallMetrics, Transport
from server.observability.tracing.tracing import Tracing
from server.rpc.addresses import ProxyTrust, peer_address
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Proceed,
    Stream,
    wrap_handler,
)
from server.rpc.client_certificates import alternative_names, is_forwarded
from server.rpc.connections import ConnectionCounter
from server.rpc.contract import ContractError, RateRule, methods, rate_rules
from server.rpc.deadlines import DeadlineTimer
from server.rpc.grpc_messages import ClientNotReading, Context, MessageChannel
from server.rpc.interceptors.admission import Admission, limit_calls
from server.rpc.interceptors.audit import audit_calls
from server.rpc.interceptors.auth import RefreshKeys, VerifyToken, authorize_calls
from server.rpc.interceptors.errors import Start, map_errors
from server.rpc.interceptors.idempotency import replay_responses
from server.rpc.interceptors.logging import record_calls
from server.rpc.interceptors.rate_limit import enforce_rate_limits
from server.rpc.interceptors.startup import refuse_until_started
from server.rpc.interceptors.step_up import require_step_up
from server.rpc.interceptors.tracing import trace_calls
from server.rpc.interceptors.validation import validate_requests

STATUS_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class ChainDependencies:
    """What the interceptors need; the composition root provides it."""

    verify: VerifyToken
    refresh_keys: RefreshKeys
    limiter: Limiter
    idempotency: Idempotency
    audit: AuditStore
    clock: Clock
    is_started: Callable[[], bool]
    rates: Mapping[str, Sequence[RateRule]]
    timer: DeadlineTimer
    start: Start
    admission: Admission
    metrics: CallMetrics
    tracing: Tracing | None = None
    second_factor_roles: Sequence[int] = ()  # whose users need a second factor


def interceptor_chain(
    method: Method, dependencies: ChainDependencies
) -> list[Interceptor]:
    """Return the interceptors of one RPC, the outermost first."""
    rules = rate_rules(method, dependencies.rates)
    verify, refresh_keys = dependencies.verify, dependencies.refresh_keys
    idempotency, clock = dependencies.idempotency, dependencies.clock
    interceptors = [
        # Around the log, whose lines carry the trace id.
        trace_calls(method, dependencies.tracing),
        # Sees the final code and the total time.
        record_calls(method, dependencies.metrics),
        # Sees the final reason and the caller.
        audit_calls(method, dependencies.audit, clock),
        # The only place that creates a status. Everything inside raises.
        map_errors(dependencies.timer, dependencies.start),
        # Before anything is spent on a call beyond the limits of this process.
        limit_calls(method, dependencies.admission),
        # Before the caches that tokens need have been filled, nothing is served.
        refuse_until_started(dependencies.is_started),
        # Before anything is spent on a caller who may not call.
        authorize_calls(method, verify, refresh_keys),
        # A log-in that is not enough is refused like a missing one.
        require_step_up(method, dependencies.second_factor_roles, clock),
        # Knows the caller; still before I/O and password hashing.
        enforce_rate_limits(method, rules, dependencies.limiter),
        # Behind the rate limits, so that probing for valid values is limited.
        validate_requests,
        # Innermost: stores and replays responses of valid requests only.
        replay_responses(method, idempotency, clock),
    ]
    return [interceptor for interceptor in interceptors if interceptor]


def serve_methods(
    servicers: Mapping[str, Sequence[object]], dependencies: ChainDependencies
) -> dict[str, tuple[Method, Proceed]]:
    """Return every RPC of the contract, by path, with its handler in the chain.

    `servicers` are by service name; a service may have several. Raises ContractError
    for an RPC that none or two servicers implement, or whose policy cannot be
    enforced.
    """
    served = {}
    for method in methods():
        service, _, name = method.name.partition("/")
        handler = _handler(method, servicers.get(service, ()), name)
        served[method.path] = (
            method,
            wrap_handler(
                interceptor_chain(method, dependencies), _innermost(method, handler)
            ),
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
        raise ContractError(
            f"{method.name}: more than one servicer implements it: {classes}"
        )
    handler: Callable[..., Any] = getattr(implementing[0], name)
    return handler


def _innermost(method: Method, handler: Callable[..., Any]) -> Proceed:
    async def unary(call: Call) -> Outcome:
        reply: Message = await handler(call.request, call)
        return reply.SerializeToString()

    async def stream(call: Call) -> Outcome:
        return _serialized(handler(call.request, call))

    return stream if method.streams else unary


async def _serialized(messages: AsyncGenerator[Message | bytes, None]) -> Stream:
    """Serialize messages, but those that a servicer has encoded once for many calls."""
    async with aclosing(messages):
        async for message in messages:
            if isinstance(message, bytes):
                yield message
            else:
                yield message.SerializeToString()


class Listener:
    """Turns gRPC requests into calls of the chain."""

    def __init__(
        self,
        proxies: ProxyTrust,
        messages: MessageChannel,
        connections: ConnectionCounter | None = None,
        reads_certificates: bool = False,
    ) -> None:
        """Read the names in client certificates only if they identify services."""
        self._proxies = proxies
        self._messages = messages
        self._connections = connections or ConnectionCounter()
        self._reads_certificates = reads_certificates

    def handlers(
        self, served: Mapping[str, tuple[Method, Proceed]]
    ) -> list[grpc.GenericRpcHandler]:
        """Return the gRPC handlers, one for each service."""
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
        # For gRPC the request is a stream, of which one message is received here.
        async def handle(_: object, context: Context) -> bytes:
            body = await self._messages.receive(context)
            call = self._call(method, body, context)
            try:
                return cast(bytes, await proceed(call))
            except Failure as failure:
                await _abort(context, call, failure)
                raise

        return grpc.stream_unary_rpc_method_handler(cast(Any, handle))

    def _stream(
        self, method: Method, proceed: Proceed
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(_: object, context: Context) -> None:
            # Messages are written one by one: grpc.aio leaves a generator to the
            # garbage collector when the client disconnects.
            body = await self._messages.receive(context)
            call = self._call(method, body, context)
            try:
                outcome = await proceed(call)
                async with aclosing(cast(Stream, outcome)) as messages:
                    async for message in messages:
                        await self._messages.send(context, message)
            except Failure as failure:
                await _abort(context, call, failure)
            except ClientNotReading:
                await self._messages.abort_unread(context)

        return grpc.stream_stream_rpc_method_handler(cast(Any, handle))

    def _call(self, method: Method, body: bytes, context: Context) -> Call:
        metadata = context.invocation_metadata() or ()
        connection = context.peer()
        self._connections.add(connection)
        peer = peer_address(connection)
        call = build_call(
            method, body, metadata, peer, self._proxies.covers(peer), self._proxies
        )
        call.timeout = context.time_remaining()
        if self._reads_certificates and not is_forwarded(call.metadata):
            call.certificate_names = alternative_names(context.auth_context())
        return call


def build_call(
    method: Method,
    body: bytes,
    pairs: Iterable[tuple[str, str | bytes]],
    peer: str,
    trusted: bool,
    proxies: ProxyTrust,
    transport: Transport = "grpc",
) -> Call:
    """Return a call. Only a trusted peer may set the client address and request id."""
    entries = tuple(pairs)
    metadata = dict(entries)
    if len(metadata) < len(entries) and _repeated(entries, "authorization"):
        # A proxy may have checked either of them, so neither is valid.
        metadata["authorization"] = b"repeated"
    forwarded: list[str] = []
    request_id = ""
    if trusted:
        forwarded = [str(value) for key, value in entries if key == "x-forwarded-for"]
        request_id = str(metadata.get("x-request-id", ""))
        if not _REQUEST_ID.fullmatch(request_id):  # a proxy may pass on a client's
            request_id = ""
    address = proxies.client(peer, forwarded) or peer
    request_id = request_id or os.urandom(16).hex()
    return Call(
        method,
        body,
        metadata,
        address,
        request_id,
        transport=transport,
        trusted=trusted,
    )


def _repeated(pairs: Iterable[tuple[str, str | bytes]], name: str) -> bool:
    return sum(key == name for key, _ in pairs) > 1


async def _abort(context: Context, call: Call, failure: Failure) -> None:
    """Send the failure with its request id.

    Successful calls carry no request id: trailing metadata costs too much.
    """
    trailers = (("x-request-id", call.request_id), (STATUS_DETAILS_KEY, failure.status))
    await context.abort(_CODES[failure.code], failure.message, trailers)
