"""Bound sockets of the listen addresses. Imports neither grpc nor the application."""

from __future__ import annotations

import errno
import socket
from pathlib import Path


class CannotListen(Exception):
    """The address of a setting cannot be bound; the message names the cause."""

    def __init__(self, setting: str, address: str, error: OSError) -> None:
        is_taken = error.errno == errno.EADDRINUSE
        advice = "stop the other process, or set" if is_taken else "set"
        super().__init__(
            f"cannot listen on {address}: {error.strerror or error}; "
            f"{advice} {setting}=ADDRESS:PORT"
        )


def bind_http(address: str) -> socket.socket:
    """Return a socket bound to the address of HTTP_LISTEN. Raises CannotListen."""
    return _bind("HTTP_LISTEN", address)


def check_grpc_address(address: str) -> None:
    """Raise CannotListen if the address of GRPC_LISTEN cannot be bound."""
    _bind("GRPC_LISTEN", address).close()


def reserve_grpc_port(address: str) -> socket.socket:
    """Return a socket that reserves the port for listeners with SO_REUSEPORT.

    It never listens, so that it receives no connection. A port on which any process
    listens is refused, with SO_REUSEPORT or without. Raises CannotListen.
    """
    check_grpc_address(address)
    return _bind("GRPC_LISTEN", address, reuse_port=True)


def bind_metrics(address: str) -> socket.socket:
    """Return a socket bound to HOST:PORT or unix:PATH. Raises CannotListen."""
    if not address.startswith("unix:"):
        return _bind("METRICS_LISTEN", address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = Path(address.removeprefix("unix:"))
    try:
        path.unlink(missing_ok=True)  # of a process that was killed
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise CannotListen("METRICS_LISTEN", address, error) from error
    return listener


def listen(setting: str, bound: socket.socket, backlog: int) -> None:
    """Listen on a bound socket. Raises CannotListen.

    With SO_REUSEADDR, a port can be bound twice: the second socket then fails here.
    """
    try:
        bound.listen(backlog)
    except OSError as error:
        address = ":".join(map(str, bound.getsockname()[:2]))
        raise CannotListen(setting, address, error) from error


def bound_address(address: str, bound: socket.socket) -> str:
    """Return the address with the port that is bound (the setting may say 0)."""
    return with_port(address, bound.getsockname()[1])


def with_port(address: str, port: int) -> str:
    """Return the address with another port."""
    return f"{address.rpartition(':')[0]}:{port}"


def _bind(setting: str, address: str, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket bound to the address. Raises CannotListen."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, int(port)))
    except OSError as error:
        bound.close()
        raise CannotListen(setting, address, error) from error
    return bound
