"""Conditional and repeatable requests: ETag, If-Match, Idempotency-Key."""

import pytest

from edge.config import EdgeSettings
from edge.http.negotiation import PROTOBUF
from edge.port import CallError, Metadata, Reply
from tests.edge.service import (
    FakePort,
)
from tests.edge.shop import item, kind, shop, violations


async def test_etag_is_strong_with_a_version_and_weak_without() -> None:
    """RFC 9110 8.8.3 and 13.1.2: 304 for a tag that is still current."""
    http = shop(FakePort(item(id=1, etag="v1")))
    strong = (await http.get("/items/1")).headers["etag"]
    assert strong.startswith('"v1;')
    known = {"if-none-match": f'W/"x", {strong}'}
    answer = await http.get("/items/1", headers=known)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == strong
    http = shop(FakePort(Reply(b"")))
    weak = (await http.get("/items")).headers["etag"]
    assert weak.startswith('W/"')
    answer = await http.get("/items", headers={"if-none-match": weak})
    assert answer.status_code == 304
    answer = await http.get("/items", headers={"if-none-match": '"other"'})
    assert answer.status_code == 200
    answer = await http.delete("/items/1", headers={"if-none-match": "*"})
    assert answer.status_code == 400  # a condition that is not checked


async def test_if_match_fills_the_etag_field() -> None:
    """The request's own field, else the body's; a conflict or a weak tag is refused."""
    port = FakePort(Reply(b""))
    http = shop(port)
    await http.delete("/items/1", headers={"if-match": '"v1"'})
    assert kind("DeleteItemRequest").FromString(port.request).etag == "v1"
    await http.patch("/items/1", json={"name": "b"}, headers={"if-match": '"v2"'})
    sent = kind("UpdateItemRequest").FromString(port.request)
    assert sent.item.etag == "v2"
    assert list(sent.update_mask.paths) == ["name"]
    body = {"name": "b", "etag": "v3"}
    answer = await http.patch("/items/1", json=body, headers={"if-match": '"v2"'})
    assert answer.status_code == 400
    assert violations(answer) == ["item.etag"]
    answer = await http.delete("/items/1", headers={"if-match": 'W/"v1"'})
    assert answer.status_code == 412
    calls = len(port.calls)
    answer = await http.post("/logout", headers={"if-match": '"v1"'})
    assert (answer.status_code, len(port.calls)) == (412, calls)
    answer = await http.post("/logout", headers={"if-match": "*"})
    assert answer.is_success
    await http.delete("/items/1", headers={"if-match": "*"})
    assert kind("DeleteItemRequest").FromString(port.request).etag == ""


async def test_aborted_is_412_with_if_match() -> None:
    """The client asked for a precondition, so its failure is one: 412, not 409."""
    http = shop(FakePort(CallError(10, "stale")))
    assert (await http.delete("/items/1")).status_code == 409
    answer = await http.delete("/items/1", headers={"if-match": '"v1"'})
    assert answer.status_code == 412


async def test_idempotency_key_fills_the_request_id() -> None:
    """draft-ietf-httpapi-idempotency-key-header, for requests with `request_id`."""
    port = FakePort(Reply(b""))
    http = shop(port)
    await http.post("/items", json={"name": "a"}, headers={"idempotency-key": '"k1"'})
    assert kind("CreateItemRequest").FromString(port.request).request_id == "k1"
    body = {"name": "a", "requestId": "k2"}
    answer = await http.post("/items", json=body, headers={"idempotency-key": "k1"})
    assert answer.status_code == 400
    assert violations(answer) == ["requestId"]


async def test_etag_covers_every_byte_of_the_answer() -> None:
    """An embedded resource changes without the version of the one around it."""
    port = FakePort(item(id=1, etag="v1", size={"wide": 1}))
    http = shop(port)
    before = (await http.get("/items/1")).headers["etag"]
    port.reply = item(id=1, etag="v1", size={"wide": 2})
    answer = await http.get("/items/1", headers={"if-none-match": before})
    assert (answer.status_code, answer.json()["size"]["wide"]) == (200, 2)
    after = answer.headers["etag"]
    assert after != before
    assert (await http.get("/items/1", headers={"accept": PROTOBUF})).headers[
        "etag"
    ] not in (before, after)
    for tag in (before, after):
        await http.delete("/items/1", headers={"if-match": tag})
        assert kind("DeleteItemRequest").FromString(port.request).etag == "v1"


async def test_etag_differs_by_content_coding() -> None:
    """RFC 9110 8.8.3.3: other bytes have another strong tag, of the same version."""
    port = FakePort(item(id=1, etag="v1", name="x" * 5000))
    http = shop(port)
    tags = {}
    for coding in ("identity", "gzip", "br"):
        accept = {"accept-encoding": coding}
        tags[coding] = (await http.get("/items/1", headers=accept)).headers["etag"]
        known = accept | {"if-none-match": tags[coding]}
        answer = await http.get("/items/1", headers=known)
        assert (answer.status_code, answer.headers["etag"]) == (304, tags[coding])
    assert len(set(tags.values())) == 3
    for tag in tags.values():
        await http.delete("/items/1", headers={"if-match": tag})
        assert kind("DeleteItemRequest").FromString(port.request).etag == "v1"


@pytest.mark.parametrize("version", ["2", "a;b", "W/x", "v;0123456789abcdef01234567"])
async def test_etag_leads_back_to_the_version(version: str) -> None:
    """Whatever the version is, If-Match with the tag of an answer names it."""
    port = FakePort(item(id=1, etag=version))
    http = shop(port)
    tag = (await http.get("/items/1")).headers["etag"]
    await http.delete("/items/1", headers={"if-match": tag})
    assert kind("DeleteItemRequest").FromString(port.request).etag == version


async def test_field_names_without_a_setting_have_no_meaning() -> None:
    """`etag` and `request_id` are fields like any other then."""
    settings = EdgeSettings(etag_field="", request_id_field="")
    port = FakePort(item(id=1, etag="v1"))
    http = shop(port, settings)
    answer = await http.get("/items/1")
    assert answer.headers["etag"].startswith("W/")
    await http.post("/items", json={}, headers={"idempotency-key": "k"})
    assert kind("CreateItemRequest").FromString(port.request).request_id == ""
    answer = await http.delete("/items/1", headers={"if-match": '"v1"'})
    assert answer.status_code == 412
    await http.patch("/items/1", json={"etag": "v1"})
    sent = kind("UpdateItemRequest").FromString(port.request)
    assert list(sent.update_mask.paths) == ["etag"]


class VersionedPort(FakePort):
    """Accepts one version; any other one is ABORTED."""

    def __init__(self, version: str) -> None:
        super().__init__(Reply(b""))
        self.version = version
        self.versions: list[str] = []

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # the port's parameter
    ) -> Reply:
        etag = kind("DeleteItemRequest").FromString(request).etag
        self.versions.append(etag)
        if etag != self.version:
            raise CallError(10, "stale")
        return Reply(b"")


@pytest.mark.parametrize(
    ("if_match", "status", "versions"),
    [
        ('"v1", "v2"', 204, ["v1", "v2"]),
        ('"v2","v1"', 204, ["v2"]),
        ('W/"v2", "v2"', 204, ["v2"]),
        (', "a, b" ,, "v2"', 204, ["a, b", "v2"]),
        ('"v2;0123456789abcdef01234567", "v2"', 204, ["v2"]),
        ("v2", 204, ["v2"]),
        ('"v1", "v3"', 412, ["v1", "v3"]),
        ('"v1"', 412, ["v1"]),
        ('W/"v2"', 412, []),
        ('W/"v2", W/"v1"', 412, []),
        ('"v1" "v2"', 412, []),
        ('""', 412, []),
    ],
)
async def test_if_match_takes_a_list_of_tags(
    if_match: str, status: int, versions: list[str]
) -> None:
    """RFC 9110 13.1.1: one strong member must match; every mismatch is ABORTED."""
    port = VersionedPort("v2")
    answer = await shop(port).delete("/items/1", headers={"if-match": if_match})
    assert (answer.status_code, port.versions) == (status, versions)
    if status == 412:
        assert answer.json()["code"] == 10


async def test_if_match_list_is_bounded() -> None:
    """Each version takes a call."""
    port = VersionedPort("v2")
    tags = ", ".join(f'"t{number}"' for number in range(5))
    answer = await shop(port).delete("/items/1", headers={"if-match": tags})
    assert (answer.status_code, port.versions) == (400, [])


async def test_if_match_for_a_resource_without_version_is_aborted() -> None:
    """The same status as for any other mismatch."""
    answer = await shop(FakePort(Reply(b""))).post(
        "/logout", headers={"if-match": '"v1"'}
    )
    assert (answer.status_code, answer.json()["code"]) == (412, 10)
