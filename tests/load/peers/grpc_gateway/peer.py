"""Go's grpc-gateway and `academy edge`, both in front of the same server (P22)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.load.peers import built
from tests.load.peers.compare import Bar, Read, Row, Service, compare
from tests.load.service import ACADEMY, free_address, listening
from tests.load.service import Service as Academy

NAME = "grpc_gateway"
CALL = "GET /users/{id}"
BARS = {CALL: Bar(2.5, cpu=0.6)}


def rows(server: Academy, _: Service) -> Iterator[Row]:
    """Compare one call, and the CPU that the gateway and the edge take for it."""
    gateway, edge = free_address(), free_address()
    theirs = [str(built.folder(NAME) / "gateway"), server.grpc, gateway]
    ours = [*ACADEMY, "edge", "--server", server.grpc]
    with (
        _running(server, NAME, theirs, gateway) as peer,
        _running(server, "academy edge", ours, edge) as our_edge,
    ):
        yield from compare(peer, our_edge, BARS)


@contextmanager
def _running(
    server: Academy, name: str, command: Sequence[str], address: str
) -> Iterator[Service]:
    log = server.folder / f"{name}.log"
    settings = {"HTTP_LISTEN": address, "DEBUG": "0"}
    with listening(command, address, log, settings, pinned=False) as process:
        read = Read(f"http://{address}{server.path}", server.bearer)
        yield Service(name, built.version(name) or "", [process], {CALL: read})
