"""Client policies: gRPC service configs, and channels that use them."""

import json
from collections.abc import Sequence
from typing import Any

import grpc

from server.rpc import contract

HEALTH_CHECK = {"serviceName": ""}
BACKOFF = {
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
}
THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}
_RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # how long an attempt may take
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def _retrying(codes: Sequence[str]) -> dict[str, Any]:
    return {"maxAttempts": 5, **BACKOFF, "retryableStatusCodes": list(codes)}


def _config(methods: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": HEALTH_CHECK,
        "methodConfig": methods,
        "retryThrottling": THROTTLING,
    }


def _repeatable() -> list[dict[str, str]]:
    """Return the methods whose repetition has no further effect."""
    return [
        {"service": service.full_name, "method": method.name}
        for service in contract.SERVICES
        for method in service.methods
        if not method.server_streaming and method.name not in _NOT_REPEATABLE
    ]


# Without a request_id, their repetition has an effect of its own.
_NOT_REPEATABLE = {"RefreshToken", "CreateServiceKey", "RotateSigningKey"}
NONE: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
UNAVAILABLE_ONLY = _config([{"name": [{}], "retryPolicy": _retrying(["UNAVAILABLE"])}])
SHIPPED = _config(
    [
        {
            "name": _repeatable(),
            "retryPolicy": _retrying(["UNAVAILABLE", "CANCELLED"]),
        },
        {"name": [{}], "retryPolicy": _retrying(["UNAVAILABLE"])},
    ]
)


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
