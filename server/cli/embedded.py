"""The embedded servers of `academy up`, and what it prints once it serves."""

from __future__ import annotations

import sys

import typer
from pydantic import SecretStr

from server.cli import state_dir
from server.config import Settings
from server.embedded.servers import EmbeddedServers


def start_embedded_servers(settings: Settings, servers: EmbeddedServers) -> Settings:
    """Start the servers whose URL is not set; return settings that name them."""
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
    rest = f"http://{http_address}"
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
