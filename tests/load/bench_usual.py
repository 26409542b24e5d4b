"""GetUser over REST against the same endpoint written the usual way (P4, P5).

What counts is the CPU of the process that speaks HTTP: not that of Postgres, which the
usual one asks each time, nor, in P5, that of the gRPC server behind both. In P5 that
server is beside the loader: it is elsewhere, and not to be waited for on one core.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import jwt

from tests.load.loader import Target, aside
from tests.load.row import Row
from tests.load.service import (
    ACADEMY,
    Service,
    compared,
    free_address,
    listening,
    rest_target,
    running,
)

JWT_SECRET = "known to the usual one and this bench"


def rows() -> list[Row]:
    """Give P4 (in process) and P5 (over a hop), each in rounds with its peer."""
    with running() as service:
        return [_in_process(service), _over_a_hop(service)]


def _in_process(service: Service) -> Row:
    theirs = {"DATABASE_URL": service.database, "JWT_SECRET": JWT_SECRET}
    url = f"http://{service.rest}{service.path}"
    ours = rest_target("ours", service.process, url, service.bearer)
    bearer = _usual_bearer(service.user)
    # Both write an access log.
    with _uvicorn(service, "usual_fastapi", bearer, theirs) as usual:
        _same(usual, ours)
        name = "P4 GET /users/{id} / FastAPI, pydantic, ORM"
        return compared(name, 8, usual, ours)


def _over_a_hop(service: Service) -> Row:
    theirs = {"GRPC_SERVER": service.grpc}
    silent = "--no-access-log"  # in P5 the gRPC server writes it
    with (
        aside(service.process),
        _uvicorn(service, "usual_gateway", service.bearer, theirs, silent) as usual,
        _edge(service) as ours,
    ):
        _same(usual, ours)
        name = "P5 academy edge / FastAPI, json_format, grpc.aio"
        return compared(name, 1.5, usual, ours)


@contextmanager
def _uvicorn(
    service: Service,
    module: str,
    headers: Mapping[str, str],
    settings: Mapping[str, str],
    *options: str,
) -> Iterator[Target]:
    """Run an app of this folder as `uvicorn` does, with its own defaults."""
    address = free_address()
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "uvicorn", f"tests.load.{module}:app"]
    command += ["--port", port, *options]
    log = service.folder / f"{module}.log"
    with listening(command, address, log, settings) as process:
        yield rest_target(module, process, f"http://{address}{service.path}", headers)


@contextmanager
def _edge(service: Service) -> Iterator[Target]:
    address = free_address()
    command = [*ACADEMY, "edge", "--server", service.grpc]
    settings = {"HTTP_LISTEN": address, "DEBUG": "0"}
    with listening(command, address, service.folder / "edge.log", settings) as process:
        url = f"http://{address}{service.path}"
        yield rest_target("ours", process, url, service.bearer)


def _usual_bearer(user: int) -> dict[str, str]:
    """Give the header that the usual one takes for a user's."""
    told = {"sub": str(user), "exp": datetime.now(UTC) + timedelta(hours=1)}
    return {"authorization": f"Bearer {jwt.encode(told, JWT_SECRET, 'HS256')}"}


def _same(usual: Target, ours: Target) -> None:
    """Refuse to compare two that answer differently."""
    told = [httpx.get(one.url, headers=one.headers).json() for one in (usual, ours)]
    if told[0] != told[1]:
        raise RuntimeError(f"{usual.name} answers {told[0]}, we answer {told[1]}")
