"""deploy/healthcheck.py, which the image runs: exit code 0 while /livez answers 200."""

import asyncio
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from edge.listener import DeadlinedProtocol
from server.composition.listeners.serving import listening_http
from server.composition.listeners.sockets import bind_http, bound_address
from tests.certificates import Files
from tests.deploy.images import FOLDER
from tests.mailbox import address_of, bound_socket
from tests.running import RunningService


async def check(environment: Mapping[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(FOLDER / "healthcheck.py"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()


async def check_listener(shared: RunningService, tls: Files | None = None) -> int:
    """Return the exit code of the check of a listener."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.folder / "cert.pem", tls.folder / "key.pem")
    environment = {"TLS_CERT": "/run/tls/tls.crt"} if tls else {}
    with bind_http("127.0.0.1:0") as listener:
        environment["HTTP_LISTEN"] = bound_address("127.0.0.1:0", listener)
        async with listening_http(
            shared.app, listener, DeadlinedProtocol, ssl_context=context
        ):
            return await check(environment)


async def test_check_succeeds_with_and_without_tls(
    shared: RunningService, tmp_path: Path
) -> None:
    """The certificate is for the names of clients, not for the loopback address."""
    files = Files(tmp_path / "tls")
    files.write(files.issue("academy.example"))
    assert await check_listener(shared) == 0
    assert await check_listener(shared, files) == 0


async def test_check_fails_if_nothing_answers() -> None:
    with bound_socket() as unused:
        assert await check({"HTTP_LISTEN": address_of(unused)}) == 1
