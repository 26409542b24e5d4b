"""Names of span attributes: OpenTelemetry semantic conventions 1.44."""

from __future__ import annotations

from typing import Final

ERROR_TYPE: Final = "error.type"

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.response.status_code"

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS_CODE: Final = "http.response.status_code"
URL_SCHEME: Final = "url.scheme"

HASHING_JOBS: Final = "academy.hashing.jobs"
OUTBOX_ENTRY: Final = "academy.outbox.entry"
OUTBOX_KIND: Final = "academy.outbox.kind"
