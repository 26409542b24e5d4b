"""Print the policy of gRPC clients as a service config, from the generated contract.

`python .ci/service_config.py FOLDER`, where FOLDER has the generated code. The format
is grpc.service_config.ServiceConfig (grpc/grpc-proto) as JSON.
docs/decisions/client-policy.md explains the values.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

MODULES = (
    "blatam.auth.v1.auth_pb2",
    "blatam.post.v1.post_pb2",
    "blatam.user.v1.user_pb2",
)
# What a second execution cannot change (RFC 9110 9.2.2).
REPEATABLE_VERBS = ("get", "put", "delete")
# A server that stops ends a call with UNAVAILABLE, or with CANCELLED if the call
# arrives while it stops (grpc/grpc#41785).
STATUS_CODES = ["UNAVAILABLE", "CANCELLED"]
RETRY_POLICY = {
    "maxAttempts": 5,  # the most that gRPC makes
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": STATUS_CODES,
}
# The most tokens that gRPC allows. Half of them is the number of calls that may fail at
# the same time and are all retried: those of every caller of a channel when a server
# stops. In an outage, retries end after as many failures.
RETRY_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}


def main(folder: Path) -> None:
    """Print the service config."""
    sys.path.insert(0, str(folder))
    names: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for module in map(importlib.import_module, MODULES):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                name = {"service": service.full_name, "method": method.name}
                names[is_repeatable(method)].append(name)
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "retryThrottling": RETRY_THROTTLING,
        "methodConfig": [
            {"name": names[True], "retryPolicy": RETRY_POLICY},
            {"name": names[False]},
        ],
    }
    print(json.dumps(config, indent=2))


def is_repeatable(method: MethodDescriptor) -> bool:
    """Return whether a client may repeat a call that it knows no outcome of.

    A method with a `request_id` is repeatable if the client sets it.
    """
    options: Any = method.GetOptions()
    policy_pb2 = importlib.import_module("blatam.policy.v1.policy_pb2")
    return (
        options.Extensions[annotations_pb2.http].WhichOneof("pattern")
        in REPEATABLE_VERBS
        or options.Extensions[policy_pb2.policy].idempotent
        or options.idempotency_level == options.IDEMPOTENT
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
