"""Texts of the OpenAPI document that are not comments of the contract."""

from __future__ import annotations

from blatam.error.v1 import reason_pb2
from blatam.policy.v1.policy_pb2 import Access, FactorLevel, MethodPolicy
from server.rpc import contract

TITLE = "Blatam Academy API"
DESCRIPTION = """\
User accounts, log-in, profiles, followers and posts of the Blatam Academy.

- **Authentication**: `POST /api/v1/auth/login` returns an access token and a refresh
  token. Send the access token in the header `Authorization: Bearer <token>`. Services
  send a service key in the same way.
- **64-bit integers**, such as ids, are JSON strings in requests and responses.
  Requests may also contain them as JSON numbers.
- **Errors** have the same body on every path, the schema `ErrorResponse`. `errorCode`
  is the machine-readable reason.
- **Idempotency**: a request with a `requestId`, or the header `Idempotency-Key`, can be
  repeated for 24 hours. A repeated request changes nothing and returns the first
  response.
- **Concurrency**: with `If-Match` and the `ETag` of a response, a change fails with 412
  if the resource has changed in the meantime.
- **Lists** return one page at a time. `nextPageToken` of a response is the `page_token`
  of the request for the next page.
"""
INFO = {
    "contact": {"name": "Blatam Academy"},
    "license": {
        "name": "All rights reserved",
        "identifier": "LicenseRef-All-Rights-Reserved",
    },
}
ERROR_REASONS = reason_pb2.Reason.DESCRIPTOR.full_name


def service_names() -> tuple[str, ...]:
    """Return the full names of the services, in the order of the document."""
    return tuple(service.full_name for service in contract.SERVICES)


def access_sentences() -> dict[str, str]:
    """Return, by path of the RPC, who may call it, if not every caller may."""
    sentences = {method.path: _sentence(method.policy) for method in contract.methods()}
    return {path: sentence for path, sentence in sentences.items() if sentence}


def step_up_sentences() -> dict[str, str]:
    """Return, by path of the RPC, which log-in it needs, if not every one is enough."""
    sentences = {m.path: _step_up_sentence(m.policy) for m in contract.methods()}
    return {path: sentence for path, sentence in sentences.items() if sentence}


def _step_up_sentence(policy: MethodPolicy) -> str:
    needs = []
    if policy.min_factor == FactorLevel.FACTOR_LEVEL_TWO:
        needs.append("a log-in with two factors")
    if policy.max_auth_age:
        needs.append(
            f"a log-in or reauthentication within the last {policy.max_auth_age} s"
        )
    if not needs:
        return ""
    paths = [f"`{path.rpartition('.')[2]}`" for path in policy.step_up_fields]
    if not paths:
        return f"This needs {' and '.join(needs)} (`STEP_UP_REQUIRED`)."
    listed = ", ".join(paths[:-1]) + " or " + paths[-1] if paths[1:] else paths[0]
    return f"A change of {listed} needs {' and '.join(needs)} (`STEP_UP_REQUIRED`)."


def _sentence(policy: MethodPolicy) -> str:
    sentences = [_access_sentence(policy)]
    needs_log_in = policy.min_factor or policy.max_auth_age
    if policy.refuses_impersonation or (needs_log_in and not policy.step_up_fields):
        sentences.append(
            "Admins who act as a user may not call this (`IMPERSONATION_FORBIDDEN`)."
        )
    return " ".join(filter(None, sentences))


def _access_sentence(policy: MethodPolicy) -> str:
    if policy.access == Access.ACCESS_SELF:
        field = policy.self.rpartition(".")[2]
        return f"Only the user with this `{field}` and admins may call this."
    if policy.access == Access.ACCESS_SERVICE:
        return "Only services and admins may call this."
    if policy.access == Access.ACCESS_ADMIN:
        return "Only admins may call this."
    return "Only users may call this, not services." if policy.user_required else ""
