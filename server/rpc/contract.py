"""The contract as the server reads it: each RPC with its policy, checked at start."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from blatam.policy.v1.policy_pb2 import Access, FactorLevel, MethodPolicy
from blatam.post.v1 import post_pb2
from blatam.user.v1 import user_pb2
from server.domain.limits import Window
from server.rpc.call import Method

SERVICES: tuple[ServiceDescriptor, ...] = (
    user_pb2.DESCRIPTOR.services_by_name["UserService"],
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    post_pb2.DESCRIPTOR.services_by_name["PostService"],
)
_PACKAGE = Path(user_pb2.__file__).parents[2]  # `blatam`, whose data both files are
ACCOUNT = "account"
SPECIAL_KEYS = ("address", "caller", ACCOUNT)


class ContractError(Exception):
    """An RPC whose policy cannot be enforced. The server refuses to start."""


@dataclass(frozen=True, slots=True)
class RateRule:
    """One rate limit: the keys that calls are counted by, and the window."""

    by: tuple[str, ...]
    window: Window


def descriptors() -> bytes:
    """Return the contract with comments and imports, as a FileDescriptorSet."""
    return (_PACKAGE / "contract.binpb").read_bytes()


def service_config() -> str:
    """Return the policy of gRPC clients: load balancing, health checks and retries."""
    return (_PACKAGE / "service_config.json").read_text()


def methods() -> Iterator[Method]:
    """Return every RPC. Raises ContractError if a policy cannot be enforced."""
    for service in SERVICES:
        for descriptor in service.methods:
            yield read_method(descriptor)


def read_method(descriptor: MethodDescriptor) -> Method:
    """Return one RPC with its policy. Raises ContractError."""
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
    if problems := list(_policy_problems(policy, descriptor.input_type)):
        raise ContractError(f"{path[1:]}: {'; '.join(problems)}")
    return method


def _policy_problems(policy: MethodPolicy, request: Descriptor) -> Iterator[str]:
    if policy.access == Access.ACCESS_UNSPECIFIED:
        yield "the policy option is missing: set policy.access"
    if policy.access == Access.ACCESS_SELF and not field_at(request, policy.self):
        yield f"policy.self is not a field of the request: {policy.self!r}"
    if policy.token_field and not field_at(request, policy.token_field):
        yield f"policy.token_field is not a field of the request: {policy.token_field}"
    if policy.idempotent and not field_at(request, "request_id"):
        yield "policy.idempotent needs a request_id field in the request"
    public = policy.access == Access.ACCESS_PUBLIC
    yield from _step_up_problems(policy, request, public)
    for rule in policy.rate_limits:
        yield from _rule_problems(rule.by, request, public)
        if not rule.limit or rule.per.ToTimedelta() <= timedelta(0):
            yield "a rate limit needs limit and per, both above zero"


def _step_up_problems(
    policy: MethodPolicy, request: Descriptor, public: bool
) -> Iterator[str]:
    is_needed = bool(policy.min_factor or policy.max_auth_age)
    options = (is_needed, policy.during_enrolment, policy.refuses_impersonation)
    if public and any(options):
        yield (
            "min_factor, max_auth_age, during_enrolment and refuses_impersonation are "
            "about signed-in callers: a public RPC cannot have them"
        )
    if policy.min_factor not in FactorLevel.values():
        yield f"policy.min_factor is not a known level: {policy.min_factor}"
    if policy.step_up_fields and not is_needed:
        yield "policy.step_up_fields needs min_factor or max_auth_age"
    for path in policy.step_up_fields:
        if not field_at(request, path):
            yield f"policy.step_up_fields names no field of the request: {path!r}"


def _rule_problems(
    by: Iterable[str], request: Descriptor, public: bool
) -> Iterator[str]:
    names = list(by)
    if not names:
        yield "a rate limit needs at least one key in 'by'"
    for name in names:
        if name == "caller" and public:
            yield "a rate limit of a public RPC cannot count by caller"
        elif name not in SPECIAL_KEYS and not field_at(request, name):
            yield (
                f"a rate limit counts by {name!r}, which is not a field of the request"
            )


def field_at(message: Descriptor, path: str) -> FieldDescriptor | None:
    """Return the singular field at a dotted path, or None."""
    field: FieldDescriptor | None = None
    parent: Descriptor | None = message
    for name in path.split("."):
        field = parent.fields_by_name.get(name) if parent else None
        if field is None or field.is_repeated:
            return None
        parent = field.message_type
    return field


def rate_rules(
    method: Method, overrides: Mapping[str, Sequence[RateRule]]
) -> Sequence[RateRule]:
    """Return the rate limits in force: the operator's, else the contract's.

    Raises ContractError if an operator's rule counts by an unknown key.
    """
    if method.name in overrides:
        rules = overrides[method.name]
        public = method.policy.access == Access.ACCESS_PUBLIC
        by_account = any(ACCOUNT in rule.by for rule in method.policy.rate_limits)
        request = cast(Descriptor, method.request_type.DESCRIPTOR)
        for rule in rules:
            problems = list(_rule_problems(rule.by, request, public))
            if ACCOUNT in rule.by and not by_account:
                problems.append(
                    "a rate limit counts by account, but the RPC verifies no password"
                )
            if problems:
                raise ContractError(
                    f"RATE_LIMITS: {method.name}: {'; '.join(problems)}"
                )
        return rules
    return [
        RateRule(tuple(rule.by), Window(rule.limit, rule.per.ToTimedelta()))
        for rule in method.policy.rate_limits
    ]


def check_overrides(names: Iterable[str]) -> None:
    """Raise ContractError if RATE_LIMITS names an unknown RPC."""
    known = {method.name for method in methods()}
    if unknown := sorted(set(names) - known):
        raise ContractError(f"RATE_LIMITS: unknown RPC: {', '.join(unknown)}")


def public_methods() -> frozenset[str]:
    """Return the paths of the RPCs that need no token."""
    return frozenset(
        m.path for m in methods() if m.policy.access == Access.ACCESS_PUBLIC
    )


def public_max_age() -> dict[str, int]:
    """Return, by path, how many seconds shared caches may keep an RPC's response."""
    return {
        m.path: m.policy.public_cache.seconds
        for m in methods()
        if m.policy.HasField("public_cache")
    }


@dataclass(slots=True)
class CookieTable:
    """The message fields that one cookie carries: RPC path to field path."""

    reply_fields: dict[str, str] = dataclasses.field(default_factory=dict)
    request_fields: dict[str, str] = dataclasses.field(default_factory=dict)
    max_age_fields: dict[str, str] = dataclasses.field(default_factory=dict)
    cleared_by: set[str] = dataclasses.field(default_factory=set)


def cookies() -> dict[str, CookieTable]:
    """Return, by cookie name, the fields that may travel in a cookie."""
    tables: defaultdict[str, CookieTable] = defaultdict(CookieTable)
    for service in SERVICES:
        for rpc in service.methods:
            path = f"/{service.full_name}/{rpc.name}"
            for field_path, cookie in _cookie_fields(rpc.input_type):
                tables[cookie.name].request_fields[path] = field_path
            for field_path, cookie in _cookie_fields(rpc.output_type):
                table = tables[cookie.name]
                lifetime = cookie.lifetime
                fields = table.max_age_fields if lifetime else table.reply_fields
                fields[path] = field_path
            for name in read_method(rpc).policy.clears_cookies:
                tables[name].cleared_by.add(path)
    return dict(tables)


def _cookie_fields(
    message: Descriptor, prefix: str = ""
) -> Iterator[tuple[str, policy_pb2.Cookie]]:
    for field in message.fields:
        options = field.GetOptions()
        if options.HasExtension(policy_pb2.cookie):
            yield prefix + field.name, options.Extensions[policy_pb2.cookie]
        elif field.message_type and not field.is_repeated:
            yield from _cookie_fields(field.message_type, f"{prefix}{field.name}.")


def rate_sentences(
    overrides: Mapping[str, Sequence[RateRule]],
) -> dict[str, tuple[str, ...]]:
    """Return, by path, the rate limits in force as sentences for documentation."""
    return {
        method.path: tuple(
            f"at most {rule.window.limit} calls in "
            f"{rule.window.per.total_seconds():g} s for each {' and '.join(rule.by)}"
            for rule in rate_rules(method, overrides)
        )
        for method in methods()
    }
