"""The contract as the server reads it: every RPC with its policy, checked at start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message_factory import GetMessageClass

from blatam.auth.v1 import auth_pb2
from blatam.policy.v1 import policy_pb2
from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
from blatam.post.v1 import post_pb2
from blatam.user.v1 import user_pb2
from server.domain.limits import Window
from server.rpc.call import Method

SERVICES: tuple[ServiceDescriptor, ...] = (
    user_pb2.DESCRIPTOR.services_by_name["UserService"],
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    post_pb2.DESCRIPTOR.services_by_name["PostService"],
)
ACCOUNT = "account"
SPECIAL_KEYS = ("address", "caller", ACCOUNT)


class ContractError(Exception):
    """An RPC whose contract cannot be enforced; the server does not start."""


@dataclass(frozen=True, slots=True)
class RateRule:
    """One rate rule: what is counted together, and the window."""

    by: tuple[str, ...]
    window: Window


def descriptors() -> bytes:
    """Give the whole contract, comments and imports included: a FileDescriptorSet."""
    return (Path(user_pb2.__file__).parents[3] / "contract.binpb").read_bytes()


def methods() -> Iterator[Method]:
    """Give every RPC. Raises ContractError naming one that cannot be enforced."""
    for service in SERVICES:
        for descriptor in service.methods:
            yield read_method(descriptor)


def read_method(descriptor: MethodDescriptor) -> Method:
    """Give what the contract says of one RPC. Raises ContractError."""
    service = descriptor.containing_service.full_name
    path = f"/{service}/{descriptor.name}"
    options = descriptor.GetOptions()
    policy: MethodPolicy = options.Extensions[policy_pb2.policy]
    method = Method(
        path=path,
        request_type=GetMessageClass(descriptor.input_type),
        policy=policy,
        streams=descriptor.server_streaming,
    )
    faults = list(_faults(policy, descriptor.input_type))
    if faults:
        raise ContractError(f"{path[1:]}: {'; '.join(faults)}")
    return method


def _faults(policy: MethodPolicy, request: Descriptor) -> Iterator[str]:
    if policy.access == Access.ACCESS_UNSPECIFIED:
        yield "has no policy: say who may call it"
    if policy.access == Access.ACCESS_SELF and not field_at(request, policy.self):
        yield f"policy.self names no field of the request: {policy.self!r}"
    if policy.idempotent and not field_at(request, "request_id"):
        yield "is idempotent, and its request has no request_id"
    public = policy.access == Access.ACCESS_PUBLIC
    for rule in policy.rate_limits:
        yield from _rule_faults(rule.by, request, public)
        if not rule.limit or rule.per.ToTimedelta() <= timedelta(0):
            yield "a rate limit needs a limit and a window"


def _rule_faults(by: Iterable[str], request: Descriptor, public: bool) -> Iterator[str]:
    names = list(by)
    if not names:
        yield "a rate limit says by what it counts"
    for name in names:
        if name == "caller" and public:
            yield "counts by caller, and anybody may call it"
        elif name not in SPECIAL_KEYS and not field_at(request, name):
            yield f"counts by {name!r}, which is no field of the request"


def field_at(message: Descriptor, path: str) -> FieldDescriptor | None:
    """Give the singular field at a dotted path."""
    found: FieldDescriptor | None = None
    where: Descriptor | None = message
    for name in path.split("."):
        found = where.fields_by_name.get(name) if where else None
        if found is None or found.is_repeated:
            return None
        where = found.message_type
    return found


def rate_rules(
    method: Method, overrides: Mapping[str, Sequence[RateRule]]
) -> Sequence[RateRule]:
    """Give the rules in force: the operator's, or else the contract's.

    Raises ContractError if the operator's count by what is not there.
    """
    if method.name in overrides:
        rules = overrides[method.name]
        public = method.policy.access == Access.ACCESS_PUBLIC
        by_account = any(ACCOUNT in rule.by for rule in method.policy.rate_limits)
        request = cast(Descriptor, method.request_type.DESCRIPTOR)
        for rule in rules:
            faults = list(_rule_faults(rule.by, request, public))
            if ACCOUNT in rule.by and not by_account:
                faults.append("counts by account, and verifies no password")
            if faults:
                raise ContractError(f"RATE_LIMITS: {method.name}: {'; '.join(faults)}")
        return rules
    return [
        RateRule(tuple(rule.by), Window(rule.limit, rule.per.ToTimedelta()))
        for rule in method.policy.rate_limits
    ]


def check_overrides(names: Iterable[str]) -> None:
    """Raise ContractError if RATE_LIMITS names an RPC that is not there."""
    known = {method.name for method in methods()}
    if unknown := sorted(set(names) - known):
        raise ContractError(f"RATE_LIMITS: no such RPC: {', '.join(unknown)}")


def public_methods() -> frozenset[str]:
    """Give the paths of the RPCs that need no token."""
    return frozenset(
        m.path for m in methods() if m.policy.access == Access.ACCESS_PUBLIC
    )


def public_max_age() -> dict[str, int]:
    """Give, by path, for how many seconds anybody may keep an RPC's answer."""
    return {
        m.path: m.policy.public_cache.seconds
        for m in methods()
        if m.policy.HasField("public_cache")
    }


@dataclass(slots=True)
class CookieTable:
    """Where one cookie comes from and goes to: by path of the RPC, a field's path."""

    reply_fields: dict[str, str] = field(default_factory=dict)
    request_fields: dict[str, str] = field(default_factory=dict)
    max_age_fields: dict[str, str] = field(default_factory=dict)
    cleared_by: set[str] = field(default_factory=set)


def cookies() -> dict[str, CookieTable]:
    """Give, by name, the cookies that browsers may keep tokens in."""
    tables: defaultdict[str, CookieTable] = defaultdict(CookieTable)
    for service in SERVICES:
        for rpc in service.methods:
            path = f"/{service.full_name}/{rpc.name}"
            for where, cookie in _cookie_fields(rpc.input_type):
                tables[cookie.name].request_fields[path] = where
            for where, cookie in _cookie_fields(rpc.output_type):
                table = tables[cookie.name]
                lifetime = cookie.lifetime
                fields = table.max_age_fields if lifetime else table.reply_fields
                fields[path] = where
            for name in read_method(rpc).policy.clears_cookies:
                tables[name].cleared_by.add(path)
    return dict(tables)


def _cookie_fields(
    message: Descriptor, prefix: str = ""
) -> Iterator[tuple[str, policy_pb2.Cookie]]:
    for part in message.fields:
        options = part.GetOptions()
        if options.HasExtension(policy_pb2.cookie):
            yield prefix + part.name, options.Extensions[policy_pb2.cookie]
        elif part.message_type and not part.is_repeated:
            yield from _cookie_fields(part.message_type, f"{prefix}{part.name}.")


def rate_sentences(
    overrides: Mapping[str, Sequence[RateRule]],
) -> dict[str, tuple[str, ...]]:
    """Give, by path, the rate rules in force as sentences for people."""
    return {
        method.path: tuple(
            f"at most {rule.window.limit} in {rule.window.per.total_seconds():g} s "
            f"by {' and '.join(rule.by)}"
            for rule in rate_rules(method, overrides)
        )
        for method in methods()
    }
