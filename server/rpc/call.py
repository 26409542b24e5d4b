"""A call as the interceptor chain sees it, independent of the transport."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from blatam.policy.v1.policy_pb2 import MethodPolicy
from server.domain.callers import ANONYMOUS, Caller
from server.domain.errors import MalformedRequest
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.limits import AccountLimit
from server.observability.metrics.calls import Transport

Metadata = tuple[tuple[str, str | bytes], ...]
Result = TypeVar("Result")


class Failure(Exception):
    """A call that ended with an error: a gRPC code and a serialized google.rpc.Status.

    Only the errors interceptor creates it.
    """

    def __init__(self, code: int, message: str, status: bytes, reason: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC as the contract declares it. `path` is "/pkg.Service/Method"."""

    path: str
    request_type: type[Message]
    policy: MethodPolicy
    streams: bool

    @property
    def name(self) -> str:
        """The name as operators write it: "pkg.Service/Method"."""
        return self.path[1:]


@dataclass(slots=True)
class PendingRequest:
    """A request with a request id that has no stored response yet."""

    key: RequestKey
    fingerprint: bytes
    now: datetime


@dataclass(slots=True)
class Call:
    """One call. `address` is the client's; `timeout` is in seconds from its start."""

    method: Method
    body: bytes
    metadata: Mapping[str, str | bytes]
    address: str
    request_id: str
    timeout: float | None = None
    transport: Transport = "grpc"
    certificate_names: Sequence[str] = ()  # of the client certificate of its sender
    trusted: bool = False  # the peer is a trusted proxy, or the edge in this process
    caller: Caller = ANONYMOUS
    account_limits: Sequence[AccountLimit] = ()  # to be enforced by the rule
    pending: PendingRequest | None = None
    audit_user_id: int = 0  # for the audit log: the user whom the call concerned
    audit_outcome: str = "OK"  # for the audit log, if the call succeeds
    _request: Message | None = field(default=None, repr=False)

    @property
    def request(self) -> Any:
        """The decoded request message. Raises MalformedRequest."""
        if self._request is None:
            try:
                self._request = self.method.request_type.FromString(self.body)
            except DecodeError as error:
                name = self.method.request_type.DESCRIPTOR.full_name
                raise MalformedRequest(
                    f"the request body is not a valid {name} message"
                ) from error
        return self._request

    @property
    def device(self) -> str:
        """The client's user agent, cut to 256 characters."""
        agent = self.metadata.get("grpcgateway-user-agent") or self.metadata.get(
            "user-agent", ""
        )
        return str(agent)[:256]

    def idempotency_record(
        self, render: Callable[[Result], Message]
    ) -> IdempotencyRecord[Result] | None:
        """Return what a store writes with the change; None without a request id."""
        if self.pending is None:
            return None
        return IdempotencyRecord(
            self.pending.key,
            self.pending.fingerprint,
            self.pending.now,
            lambda result: render(result).SerializeToString(),
        )


# A unary call returns bytes; a server stream a generator, which its reader closes.
Stream = AsyncGenerator[bytes, None]
Outcome = bytes | Stream
CallCoroutine = Coroutine[Any, Any, Outcome]
Proceed = Callable[[Call], CallCoroutine]
Interceptor = Callable[[Call, Proceed], CallCoroutine]


def wrap_handler(interceptors: list[Interceptor], handler: Proceed) -> Proceed:
    """Wrap a handler in interceptors, the first outermost. Done once, at start."""
    for interceptor in reversed(interceptors):
        handler = _bind(interceptor, handler)
    return handler


def _bind(interceptor: Interceptor, inner: Proceed) -> Proceed:
    def proceed(call: Call) -> CallCoroutine:
        return interceptor(call, inner)

    return proceed
