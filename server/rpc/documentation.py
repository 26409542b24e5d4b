"""Texts of the OpenAPI document that are not comments of the contract."""

from __future__ import annotations

from blatam.error.v1 import reason_pb2
from blatam.policy.v1.policy_pb2 import Access, MethodPolicy
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


def _sentence(policy: MethodPolicy) -> str:
    if policy.access == Access.ACCESS_SELF:
        field = policy.self.rpartition(".")[2]
        return f"Only the user with this `{field}` and admins may call this."
    if policy.access == Access.ACCESS_SERVICE:
        return "Only services and admins may call this."
    if policy.access == Access.ACCESS_ADMIN:
        return "Only admins may call this."
    return "Only users may call this, not services." if policy.user_required else ""
