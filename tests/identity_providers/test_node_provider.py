"""A log-in with a certified provider that we did not write: oidc-provider, on Node.js.

It demands PKCE, sends `iss` (RFC 9207), and puts e-mail addresses into UserInfo only.

Opt-in, because it installs packages from npm:
PROVIDER_TESTS=1 python -m pytest tests/identity_providers/test_node_provider.py
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest

from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, entry, write_entries
from tests.running import running

HERE = Path(__file__).parent / "node"
INSTALL_SECONDS, START_SECONDS = 300, 30
SITE = "https://academy.test"

pytestmark = pytest.mark.skipif(
    os.environ.get("PROVIDER_TESTS") != "1",
    reason="installs packages from npm; set PROVIDER_TESTS=1",
)


@asynccontextmanager
async def node_provider(folder: Path) -> AsyncIterator[str]:
    """Run the provider; return its issuer."""
    for name in ("server.mjs", "package.json"):
        shutil.copy(HERE / name, folder)
    install = await asyncio.create_subprocess_exec(
        "npm", "install", "--no-audit", "--no-fund", cwd=folder
    )
    async with asyncio.timeout(INSTALL_SECONDS):
        assert await install.wait() == 0
    client = {
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "redirect_uris": [f"{SITE}/federated-login"],
    }
    process = await asyncio.create_subprocess_exec(
        "node",
        "server.mjs",
        cwd=folder,
        env=os.environ | {"CLIENT": json.dumps(client)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        async with asyncio.timeout(START_SECONDS):
            while not (line := await process.stdout.readline()).startswith(b"issuer "):
                assert line, "the provider ended"
        yield line.decode().split()[1]
    finally:
        process.kill()
        await process.communicate()


async def browse(url: str, subject: str) -> dict[str, str]:
    """Log in and consent on the provider's pages; return what it redirects with."""
    async with httpx.AsyncClient() as browser:
        page = await browser.get(url)
        while not (url := page.headers.get("location", "")).startswith(SITE):
            if url:
                page = await browser.get(urljoin(str(page.url), url))
                continue
            prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
            action = re.search(r'action="([^"]+)"', page.text)
            assert prompt, page.text
            assert action, page.text
            form = {"prompt": prompt[1], "login": subject, "password": "any"}
            page = await browser.post(urljoin(str(page.url), action[1]), data=form)
    return dict(parse_qsl(urlsplit(url).query))


async def begin(http: httpx.AsyncClient) -> dict[str, str]:
    """Log in with the provider; return the body that completes it."""
    path = "/api/v1/auth/federated-login:begin"
    begun = (await http.post(path, json={"providerId": "node"})).json()
    sent = await browse(begun["authorizationUrl"], "ana")
    return {"clientNonce": begun["clientNonce"], **sent}


async def test_log_in(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """The second log-in finds the account; one without `iss` is refused."""
    path = "/api/v1/auth/federated-login:complete"
    async with node_provider(tmp_path) as issuer:
        entries = write_entries(tmp_path, entry("node", issuer, tmp_path))
        async with running(
            database_url, redis_url, oidc_providers=entries, public_url=SITE
        ) as service:
            users = []
            for _ in range(2):
                body = await begin(service.http)
                assert body["iss"] == issuer
                answer = await service.http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                token = answer.json()["accessToken"]
                headers = {"authorization": f"Bearer {token}"}
                current = await service.http.get("/api/v1/users/me", headers=headers)
                users.append(current.json())
            assert users[0]["username"] == "ana_of_node"
            assert users[0]["email"] == "ana@node.example"
            assert users[0]["id"] == users[1]["id"]
            body = await begin(service.http)
            del body["iss"]
            refused = await service.http.post(path, json=body)
            assert refused.json()["errorCode"] == "FEDERATED_LOGIN_INVALID"
