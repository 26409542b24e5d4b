"""The contract is whole, and one that is not stops the server."""

import ast
import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

import edge
from blatam.error.v1 import reason_pb2
from blatam.policy.v1 import policy_pb2
from blatam.policy.v1.policy_pb2 import Access, MethodPolicy, RateLimit
from server.domain import errors
from server.domain.limits import Window
from server.rpc import contract
from server.rpc.call import Method
from server.rpc.contract import ContractError, RateRule, read_method
from server.rpc.listener import serve_methods

HTTP: Any = annotations_pb2.http


def method_with(policy: MethodPolicy | None) -> Method:
    """Give an RPC over a request with `id`, `name` and `names`, and this policy."""
    file = descriptor_pb2.FileDescriptorProto(
        name="t.proto",
        package="t",
        syntax="proto3",
        dependency=["blatam/policy/v1/policy.proto"],
    )
    request = file.message_type.add(name="Request")
    request.field.add(name="id", number=1, type=3, label=1)
    request.field.add(name="name", number=2, type=9, label=1)
    request.field.add(name="names", number=3, type=9, label=3)
    rpc = file.service.add(name="S").method.add(
        name="M", input_type=".t.Request", output_type=".t.Request"
    )
    if policy is not None:
        rpc.options.Extensions[policy_pb2.policy].CopyFrom(policy)
    pool = descriptor_pool.DescriptorPool()
    for needed in (
        "google/protobuf/descriptor.proto",
        "google/protobuf/duration.proto",
        "blatam/policy/v1/policy.proto",
    ):
        known = descriptor_pool.Default().FindFileByName(needed)
        copy = descriptor_pb2.FileDescriptorProto()
        known.CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    return read_method(pool.FindServiceByName("t.S").methods[0])


def limit(*by: str, most: int = 1, seconds: int = 1) -> RateLimit:
    rule = RateLimit(by=by, limit=most)
    rule.per.seconds = seconds
    return rule


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (None, "policy option is missing"),
        (MethodPolicy(access=Access.ACCESS_SELF, self="nobody"), "policy.self"),
        (MethodPolicy(access=Access.ACCESS_PUBLIC, idempotent=True), "request_id"),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, rate_limits=[limit("caller")]),
            "cannot count by caller",
        ),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, rate_limits=[limit("e_mail")]),
            "not a field of the request",
        ),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, rate_limits=[limit("names")]),
            "not a field of the request",
        ),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, rate_limits=[limit()]),
            "at least one key",
        ),
        (
            MethodPolicy(
                access=Access.ACCESS_PUBLIC, rate_limits=[limit("name", most=0)]
            ),
            "needs limit and per",
        ),
    ],
)
def test_a_faulty_policy_is_named(policy: MethodPolicy | None, fault: str) -> None:
    """R27: deny by default; the server does not start and says which RPC."""
    with pytest.raises(ContractError, match=f"t.S/M: .*{fault}"):
        method_with(policy)


def test_a_good_policy_is_read() -> None:
    policy = MethodPolicy(
        access=Access.ACCESS_SELF, self="id", rate_limits=[limit("caller", "name")]
    )
    assert method_with(policy).policy == policy


def test_an_rpc_without_a_servicer_is_named() -> None:
    with pytest.raises(ContractError, match="no servicer implements it"):
        serve_methods({}, None)  # type: ignore[arg-type]  # not looked at


def check(overrides: dict[str, list[RateRule]]) -> None:
    contract.check_overrides(overrides)
    contract.rate_sentences(overrides)


@pytest.mark.parametrize(
    ("name", "by"),
    [("blatam.user.v1.UserService/Nothing", "address"),
     ("blatam.user.v1.UserService/GetUser", "nothing"),
     ("blatam.user.v1.UserService/GetUser", "account"),
     ("blatam.auth.v1.AuthService/Login", "caller")],
)  # fmt: skip
def test_faulty_overrides_are_named(name: str, by: str) -> None:
    """RATE_LIMITS is held to the same rules as the contract."""
    overrides = {name: [RateRule((by,), Window(1, timedelta(seconds=1)))]}
    with pytest.raises(ContractError, match=f"RATE_LIMITS: .*{name}"):
        check(overrides)


def test_every_refusal_has_its_reason_in_the_contract() -> None:
    """The tree of errors and the enum of reasons say the same."""
    raised = {
        error.reason
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.AcademyError) and error is not errors.AcademyError
    }
    names = reason_pb2.Reason.DESCRIPTOR.values_by_name
    named = {name.removeprefix("REASON_") for name in names}
    assert named - {"UNSPECIFIED", "INTERNAL"} == raised | edge_reasons()


def edge_reasons() -> set[str]:
    """Give the reasons that the edge's own refusals bear, by its source."""
    texts = [path.read_text() for path in Path(edge.__path__[0]).rglob("*.py")]
    refusals = [
        node
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "HttpError"
    ]
    given = [node.args[1] for node in refusals if len(node.args) > 1]
    reasons = {str(r.value) for r in given if isinstance(r, ast.Constant)}
    shared = {"ETAG_MISMATCH", "INVALID_FIELDS", "MALFORMED_REQUEST"}
    return reasons - shared


def test_what_is_safe_only_reads() -> None:
    """R24: no GET of ours changes anything, so that no link can."""
    reads = ("Get", "BatchGet", "List", "Export", "Watch")
    found = [
        method.name
        for service in contract.SERVICES
        for method in service.methods
        if method.GetOptions().Extensions[HTTP].get
    ]
    assert found
    assert all(name.startswith(reads) for name in found)
