"""Client policies: gRPC service configs, and channels that use them."""

import json
from collections.abc import Sequence
from typing import Any

import grpc

from server.rpc import contract

_RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


# The policy of the contract, and two to compare it with.
SHIPPED: dict[str, Any] = json.loads(contract.service_config())
NONE: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
UNAVAILABLE_ONLY = {
    **NONE,
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def open_channel(
    addresses: Sequence[str], policy: dict[str, Any] = SHIPPED
) -> grpc.aio.Channel:
    """Return a channel over all addresses, with connections of its own."""
    return grpc.aio.insecure_channel(
        f"ipv4:{','.join(addresses)}",
        [
            ("grpc.service_config", json.dumps(policy)),
            ("grpc.use_local_subchannel_pool", 1),
            *_RECONNECT,
        ],
    )
