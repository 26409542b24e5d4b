"""The contract is complete, and the server does not start with a faulty one."""

import ast
import inspect
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import code_pb2
from protobuf import DescMethod

import edge
from blatam.error.v1 import reason_pb2
from blatam.policy.v1 import policy_pb2
from blatam.policy.v1.policy_pb2 import Access, MethodPolicy, RateLimit
from edge.openapi.text import read_text
from edge.schema.codec import Codec
from edge.schema.components import comment
from server.domain import errors
from server.domain.limits import Window
from server.rpc import contract, documentation
from server.rpc.call import Method
from server.rpc.contract import ContractError, RateRule, read_method
from server.rpc.listener import serve_methods

HTTP: Any = annotations_pb2.http


def method_with(policy: MethodPolicy | None) -> Method:
    """Return an RPC whose request has `id`, `name` and `names`, with this policy."""
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
    for path in (
        "google/protobuf/descriptor.proto",
        "google/protobuf/duration.proto",
        "blatam/policy/v1/policy.proto",
    ):
        dependency = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(path).CopyToProto(dependency)
        pool.Add(dependency)
    pool.Add(file)
    return read_method(pool.FindServiceByName("t.S").methods[0])


def limit(*by: str, calls: int = 1, seconds: int = 1) -> RateLimit:
    rule = RateLimit(by=by, limit=calls)
    rule.per.seconds = seconds
    return rule


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (None, "policy option is missing"),
        (MethodPolicy(access=Access.ACCESS_SELF, self="unknown"), "policy.self"),
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
                access=Access.ACCESS_PUBLIC, rate_limits=[limit("name", calls=0)]
            ),
            "needs limit and per",
        ),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, max_auth_age=600),
            "a public RPC cannot have them",
        ),
        (
            MethodPolicy(access=Access.ACCESS_PUBLIC, during_enrolment=True),
            "a public RPC cannot have them",
        ),
        (
            MethodPolicy(access=Access.ACCESS_ADMIN, step_up_fields=["name"]),
            "needs min_factor or max_auth_age",
        ),
        (
            MethodPolicy(
                access=Access.ACCESS_ADMIN, max_auth_age=1, step_up_fields=["e_mail"]
            ),
            "names no field of the request: 'e_mail'",
        ),
    ],
)
def test_faulty_policy_stops_the_start(policy: MethodPolicy | None, fault: str) -> None:
    """R27: deny by default; the server does not start, and the error names the RPC."""
    with pytest.raises(ContractError, match=f"t.S/M: .*{fault}"):
        method_with(policy)


def test_valid_policy_is_read() -> None:
    policy = MethodPolicy(
        access=Access.ACCESS_SELF, self="id", rate_limits=[limit("caller", "name")]
    )
    assert method_with(policy).policy == policy


def test_rpc_without_servicer_stops_the_start() -> None:
    with pytest.raises(ContractError, match="no servicer implements it"):
        serve_methods({}, None)  # type: ignore[arg-type]  # not used


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
def test_faulty_rate_limit_overrides_are_refused(name: str, by: str) -> None:
    """RATE_LIMITS is checked by the same rules as the contract."""
    overrides = {name: [RateRule((by,), Window(1, timedelta(seconds=1)))]}
    with pytest.raises(ContractError, match=f"RATE_LIMITS: .*{name}"):
        check(overrides)


def test_error_reasons_match_the_contract() -> None:
    """Every error has a reason in the contract, and every reason has an error."""
    raised = {
        error.reason
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.AcademyError) and error is not errors.AcademyError
    }
    names = reason_pb2.Reason.DESCRIPTOR.values_by_name
    named = {name.removeprefix("REASON_") for name in names}
    assert named - {"UNSPECIFIED", "INTERNAL"} == raised | edge_reasons()


def edge_reasons() -> set[str]:
    """Return the reasons of the edge's own errors, read from its source."""
    texts = [path.read_text() for path in Path(edge.__path__[0]).rglob("*.py")]
    calls = [
        node
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "HttpError"
    ]
    arguments = [node.args[1] for node in calls if len(node.args) > 1]
    reasons = {str(a.value) for a in arguments if isinstance(a, ast.Constant)}
    shared = {"ETAG_MISMATCH", "INVALID_FIELDS", "MALFORMED_REQUEST"}
    return reasons - shared


def test_get_requests_only_read() -> None:
    """R24: no GET changes anything, so that no link can."""
    reads = ("Get", "BatchGet", "List", "Export", "Watch")
    names = [
        method.name
        for service in contract.SERVICES
        for method in service.methods
        if method.GetOptions().Extensions[HTTP].get
    ]
    assert names
    assert all(name.startswith(reads) for name in names)


CODEC = Codec(contract.descriptors())
CODES = dict(code_pb2.Code.items())


def reason_codes() -> dict[str, str]:
    """Return the code or HTTP status that the comment of each reason starts with."""
    enum = CODEC.registry.enum(reason_pb2.Reason.DESCRIPTOR.full_name)
    assert enum
    return {
        value.name.removeprefix("REASON_"): comment(value).partition(":")[0]
        for value in enum.values
    }


def test_reasons_are_documented_with_their_code() -> None:
    """A code or an HTTP status, then when it happens."""
    for reason, code in reason_codes().items():
        known = code in CODES or re.fullmatch("HTTP 4[0-9]{2}", code)
        assert known or reason == "UNSPECIFIED", reason


METHODS = [m for m in CODEC.methods() if m.parent.type_name.startswith("blatam.")]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_rpc_comments_document_errors(method: DescMethod) -> None:
    """One sentence, then "Returns CODE (REASON) if ..." for each error."""
    text = read_text(method)
    assert text.summary.endswith("."), "the first sentence"
    codes = reason_codes()
    for code, sentences in text.errors.items():
        reasons = re.findall(r"\(([A-Z_]{4,})\)", sentences)
        name = code_pb2.Code.Name(code)
        assert all(codes[reason] == name for reason in reasons), sentences


def test_access_is_documented() -> None:
    """The policy in words, for every RPC that not every caller may call."""
    sentences = documentation.access_sentences()
    prefix = "/blatam.user.v1.UserService/"
    assert sentences[f"{prefix}UpdateUser"] == (
        "Only the user with this `id` and admins may call this."
    )
    assert sentences[f"{prefix}ExportUsers"] == "Only admins may call this."
    assert sentences[f"{prefix}WatchUsers"] == "Only services and admins may call this."
    assert "not services" in sentences[f"{prefix}GetCurrentUser"]
    assert f"{prefix}GetUser" not in sentences
    assert sentences[f"{prefix}DeleteUser"].endswith(
        "Admins who act as a user may not call this (`IMPERSONATION_FORBIDDEN`)."
    )


def test_sensitive_calls_need_a_recent_log_in() -> None:
    """Of ten minutes: credentials, factors, keys, roles, and all personal data."""
    needing = {
        method.name.rpartition("/")[2]
        for method in contract.methods()
        if method.policy.max_auth_age == 600
    }
    assert needing >= {
        *("CreateTotpFactor", "ConfirmTotpFactor", "CreatePasskey", "ConfirmPasskey"),
        *("DeleteFactor", "RegenerateRecoveryCodes", "UnlinkIdentity"),
        *("ChangePassword", "ChangeEmail", "ExportUser", "EraseUser"),
        *("CreateServiceKey", "RevokeServiceKey", "RotateSigningKey"),
        *("UpdateUser", "ImpersonateUser"),
    }


def test_step_up_is_documented() -> None:
    """The log-in that an RPC needs in words, for every RPC that not every one opens."""
    sentences = documentation.step_up_sentences()
    auth, users = "/blatam.auth.v1.AuthService", "/blatam.user.v1.UserService"
    assert sentences[f"{auth}/ChangePassword"] == (
        "This needs a log-in or reauthentication within the last 600 s "
        "(`STEP_UP_REQUIRED`)."
    )
    assert "a log-in with two factors" in sentences[f"{auth}/ImpersonateUser"]
    change = sentences[f"{users}/UpdateUser"]
    assert change.startswith(
        "A change of `email`, `is_active` or `role` needs a log-in"
    )
    assert f"{users}/GetUser" not in sentences


def test_calls_without_sign_in_are_limited_by_address() -> None:
    """Calls that store or look up something for unknown callers have a rate limit.

    GetJsonWebKeySet does neither: it returns what is in memory.
    """
    unlimited = {
        method.name
        for method in contract.methods()
        if method.policy.access == Access.ACCESS_PUBLIC or method.policy.token_field
        if not any("address" in limit.by for limit in method.policy.rate_limits)
    }
    assert unlimited == {"blatam.auth.v1.AuthService/GetJsonWebKeySet"}
