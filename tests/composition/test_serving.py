"""Listening: the error for an address that cannot be bound names the cause."""

import socket

import pytest

from server.composition.serving import listening_grpc
from server.composition.sockets import CannotListen, bind_http
from server.rpc.grpc_server import build_grpc_server

FOREIGN = "192.0.2.1:50051"  # RFC 5737: no interface has this address


async def listen(setting: str, address: str) -> None:
    """Listen on an address for a moment, by the protocol of a setting."""
    if setting == "HTTP_LISTEN":
        bind_http(address).close()
    else:
        async with listening_grpc(build_grpc_server([]), address):
            pass


@pytest.mark.parametrize("setting", ["GRPC_LISTEN", "HTTP_LISTEN"])
async def test_listening_names_why_an_address_cannot_be_bound(setting: str) -> None:
    """An address of another machine is not reported as a port that is taken."""
    with pytest.raises(CannotListen) as error:
        await listen(setting, FOREIGN)
    assert str(error.value) == (
        f"cannot listen on {FOREIGN}: Cannot assign requested address; "
        f"set {setting}=ADDRESS:PORT"
    )


@pytest.mark.parametrize("setting", ["GRPC_LISTEN", "HTTP_LISTEN"])
async def test_listening_names_a_port_that_is_taken(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CannotListen) as error:
            await listen(setting, address)
    assert str(error.value) == (
        f"cannot listen on {address}: Address already in use; "
        f"stop the other process, or set {setting}=ADDRESS:PORT"
    )
