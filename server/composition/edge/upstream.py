"""The connection from `academy edge` to its server, over TLS or in plaintext."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc

from edge.port import CHANNEL_OPTIONS
from server.composition.edge.upstream_port import UpstreamPort
from server.composition.tls.files import Credentials
from server.composition.tls.reload import ReloadedCredentials
from server.rpc import contract
from server.workers.poller import Poller
from server.workers.supervisor import Task, supervise

CHECK_INTERVAL = timedelta(seconds=1)


@asynccontextmanager
async def connected_upstream(
    server: str, credentials: ReloadedCredentials | None
) -> AsyncIterator[UpstreamPort]:
    """Connect to a server during the block, in plaintext without credentials."""
    options = channel_options()

    def connect() -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(server, options)
        return grpc.aio.secure_channel(
            server, _channel_credentials(credentials.current()), options
        )

    port = UpstreamPort(connect)
    try:
        async with supervise(*(_watch_tasks(credentials, port) if credentials else ())):
            yield port
    finally:
        await port.close()


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of the channel: the policy of gRPC clients.

    Methods with a `request_id` are not retried: over REST it is the client that sets
    one or not, and that retries.
    """
    config = json.loads(contract.service_config())
    with_request_id = {m.path for m in contract.methods() if m.policy.idempotent}
    for method_config in config["methodConfig"]:
        method_config["name"] = [
            name
            for name in method_config["name"]
            if f"/{name['service']}/{name['method']}" not in with_request_id
        ]
    return [*CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(config))]


def _channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        credentials.authorities, credentials.key, credentials.certificate
    )


def _watch_tasks(
    credentials: ReloadedCredentials, port: UpstreamPort
) -> Sequence[Task]:
    """Return the task that reconnects when the credentials have changed."""
    in_use = credentials.current()

    async def watch() -> None:
        nonlocal in_use
        credentials.warn_of_expiry()
        if credentials.current() is not in_use:
            in_use = credentials.current()
            port.reconnect()

    return (Poller("client certificate", watch, CHECK_INTERVAL),)
