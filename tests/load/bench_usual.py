"""GetUser over REST against the same endpoint in plain FastAPI (P4, P5).

Only the CPU of the HTTP process counts: not that of Postgres, which the FastAPI app
queries each time, nor, in P5, that of the gRPC server behind both. In P5 that server
runs on the loader's core, so that it does not compete with what is measured.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import jwt

from tests.load.loader import Target, aside
from tests.load.row import ResultRow
from tests.load.service import (
    ACADEMY,
    Service,
    compared,
    free_address,
    listening,
    rest_target,
    running,
)

JWT_SECRET = "shared by the FastAPI app and this benchmark"


def rows() -> list[ResultRow]:
    """Return P4 (in process) and P5 (behind a hop), each in rounds with its peer."""
    with running() as service:
        return [_in_process(service), _over_a_hop(service)]


def _in_process(service: Service) -> ResultRow:
    environment = {"DATABASE_URL": service.database, "JWT_SECRET": JWT_SECRET}
    url = f"http://{service.rest}{service.path}"
    ours = rest_target("ours", service.process, url, service.bearer)
    bearer = _usual_bearer(service.user)
    # Both write an access log.
    with _uvicorn(service, "usual_fastapi", bearer, environment) as usual:
        _check_equal(usual, ours)
        name = "P4 GET /users/{id} / FastAPI, pydantic, ORM"
        return compared(name, 12, usual, ours)


def _over_a_hop(service: Service) -> ResultRow:
    environment = {"GRPC_SERVER": service.grpc}
    silent = "--no-access-log"  # in P5 the gRPC server writes it
    with (
        aside(service.process),
        _uvicorn(
            service, "usual_gateway", service.bearer, environment, silent
        ) as usual,
        _edge(service) as ours,
    ):
        _check_equal(usual, ours)
        name = "P5 academy edge / FastAPI, json_format, grpc.aio"
        return compared(name, 3, usual, ours)


@contextmanager
def _uvicorn(
    service: Service,
    module: str,
    headers: Mapping[str, str],
    settings: Mapping[str, str],
    *options: str,
) -> Iterator[Target]:
    """Run an app of this folder under uvicorn with its defaults."""
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
    """Return the header that authenticates a user to the FastAPI app."""
    claims = {"sub": str(user), "exp": datetime.now(UTC) + timedelta(hours=1)}
    return {"authorization": f"Bearer {jwt.encode(claims, JWT_SECRET, 'HS256')}"}


def _check_equal(usual: Target, ours: Target) -> None:
    """Raise RuntimeError if the two answer differently."""
    first, second = (httpx.get(t.url, headers=t.headers).json() for t in (usual, ours))
    if first != second:
        raise RuntimeError(f"{usual.name} answers {first}, ours answers {second}")
