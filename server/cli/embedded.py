"""The embedded servers of `academy up`, and what it prints once it serves.

Only `academy up` imports this module, because its servers are an extra.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import SecretStr

from server.cli import state_dir
from server.config import Settings
from server.embedded.servers import EmbeddedServers


@contextmanager
def embedded_servers(settings: Settings) -> Iterator[tuple[Settings, EmbeddedServers]]:
    """Run the servers whose URL is not set; yield settings that name them, and them.

    Raises EmbeddedServerError.
    """
    servers = EmbeddedServers(settings.state_dir)
    try:
        yield _start(settings, servers), servers
    finally:
        servers.stop()


def _start(settings: Settings, servers: EmbeddedServers) -> Settings:
    values: dict[str, SecretStr] = {}
    if settings.database_url is None:
        values["database_url"] = SecretStr(servers.start_postgres())
    if settings.redis_url is None:
        values["redis_url"] = SecretStr(servers.start_valkey())
    if settings.secret_key is None:
        values["secret_key"] = state_dir.load_or_create_secret_key(settings.state_dir)
    urls = {n: v.get_secret_value() for n, v in values.items() if n.endswith("_url")}
    state_dir.save_endpoints(settings.state_dir, urls)
    return settings.model_copy(update=values)


def print_banner(settings: Settings, grpc_address: str, http_address: str) -> None:
    """Print the addresses and three commands to begin with."""
    scheme = "https" if settings.tls_cert else "http"
    rest = f"{scheme}://{http_address}"
    docs = f"   docs {rest}/docs" if settings.debug else ""
    typer.echo(
        f"""
Blatam Academy is up.   REST {rest}   gRPC {grpc_address}{docs}

  curl {rest}/api/v1/users -H 'content-type: application/json' \\
    -d '{{"email": "ana@example.com", "username": "ana", "password": "Blue7horse"}}'
  curl {rest}/api/v1/auth/login -H 'content-type: application/json' \\
    -d '{{"identifier": "ana", "password": "Blue7horse"}}'
  curl {rest}/api/v1/users/me -H "authorization: Bearer $ACCESS_TOKEN"
"""
    )
    sys.stdout.flush()
