"""Media types and content codings."""

import gzip
import json
from typing import Any

import brotli  # type: ignore[import-untyped]  # ships no types
import pytest
import zstandard

from edge.config import EdgeSettings
from tests.edge.service import (
    FakePort,
)
from tests.edge.shop import item, kind, shop


async def test_unsupported_media_type_is_406_or_415() -> None:
    """The request is refused before the call is made."""
    port = FakePort(item(id=1))
    http = shop(port)
    answer = await http.get("/items/1", headers={"accept": "text/html"})
    assert answer.status_code == 406
    answer = await http.get(
        "/items/1", headers={"accept": "application/json;q=0, text/*"}
    )
    assert answer.status_code == 406
    for media in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await http.post(
            "/items", content=b"{}", headers={"content-type": media}
        )
        assert answer.status_code == 415
    answer = await http.post(
        "/items",
        content=b"{}",
        headers={"content-type": "application/json; charset=latin1"},
    )
    assert answer.status_code == 415
    assert not port.calls


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_bodies_are_compressed_both_ways(coding: str) -> None:
    """A long answer is compressed on request; a request is decompressed to a limit."""
    compressors: dict[str, Any] = {
        "gzip": gzip.compress,
        "br": brotli.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    port = FakePort(item(id=1, name="x" * 5000))
    http = shop(port, EdgeSettings(max_decompressed_bytes=100_000))
    headers = {"content-encoding": coding, "accept-encoding": f"{coding};q=1, x;q=0"}
    body = compressors[coding](json.dumps({"name": "y" * 2000}).encode())
    answer = await http.post("/items", content=body, headers=headers)
    assert answer.status_code == 201
    assert kind("CreateItemRequest").FromString(port.request).name == "y" * 2000
    assert answer.headers["content-encoding"] == coding
    assert "Accept-Encoding" in answer.headers["vary"]
    if coding != "zstd":  # httpx does not decompress it
        assert answer.json()["name"] == "x" * 5000
    bomb = compressors[coding](b" " * 50_000_000)
    answer = await http.post("/items", content=bomb, headers=headers)
    assert answer.status_code == 413
    answer = await http.post("/items", content=b"nonsense", headers=headers)
    assert answer.status_code == 400
    cut = await http.post("/items", content=body[:-4], headers=headers)
    assert cut.status_code == 400
    twice = headers | {"content-encoding": f"{coding}, {coding}"}
    assert (await http.post("/items", content=body, headers=twice)).status_code == 415
    odd = {"content-encoding": "lzma"}
    assert (await http.post("/items", content=b"x", headers=odd)).status_code == 415


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8; version=1", 201),
        ("application/json;version=1", 201),
        ('application/json; charset="UTF-8"', 201),
        ("application/json; charset=utf8", 201),
        ('application/json; x="a;charset=latin1"', 201),
        ("application/json;", 201),
        ("application/json; version=1; charset=latin1", 415),
        ('application/json; charset="utf-16"', 415),
        ("application/jsonx", 415),
    ],
)
async def test_only_the_charset_of_a_json_body_matters(
    content_type: str, status: int
) -> None:
    """RFC 9110 8.3: unknown parameters are ignored; JSON is UTF-8 (RFC 8259 8.1)."""
    port = FakePort(item(id=1))
    headers = {"content-type": content_type}
    answer = await shop(port).post("/items", content=b"{}", headers=headers)
    assert answer.status_code == status
