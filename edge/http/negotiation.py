"""Media types and content codings: what a client takes and sends (RFC 9110)."""

import asyncio
import zlib
from functools import lru_cache

import brotli  # type: ignore[import-untyped]  # ships no types
import zstandard

from edge.errors import HttpError

JSON = "application/json"
PROTOBUF = "application/protobuf"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
_SAME = {
    "application/x-protobuf": PROTOBUF,
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
}
_CODINGS = ("zstd", "br", "gzip")  # ours, best first
_INLINE_BYTES = 64 * 1024  # more is compressed off the loop
_FAILURES = (zlib.error, brotli.error, zstandard.ZstdError)


def _qualities(header: bytes) -> dict[str, float]:
    """Give the values of an Accept-like header with their weights (12.4.2)."""
    found: dict[str, float] = {}
    for part in header.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [p[2:] for p in parameters if p.startswith("q=")]
        if name:
            found[_SAME.get(name, name)] = _weight(weights[-1]) if weights else 1.0
    return found


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


@lru_cache(maxsize=256)
def choose(accept: bytes | None, offers: tuple[str, ...]) -> str:
    """Give the offer that a client likes best, the first of equals.

    Raises HttpError (406) where it takes none.
    """
    if accept is None or not accept.strip() or offers == ("*/*",):
        return offers[0]  # a raw reply says its own type only when it is there
    taken = _qualities(accept)

    def quality(offer: str) -> float:
        names = (offer, offer.partition("/")[0] + "/*", "*/*")
        return next((taken[name] for name in names if name in taken), 0.0)

    best = max(offers, key=quality)
    if quality(best) > 0:
        return best
    told = f"this answer comes as {' or '.join(offers)}"
    raise HttpError(told, "NOT_ACCEPTABLE", http=406)


def unsupported(told: str, accepted: str = "") -> HttpError:
    """Give the refusal of a body in a form that nobody here reads: 415."""
    headers = [(b"accept-encoding", accepted.encode())] if accepted else []
    return HttpError(told, "UNSUPPORTED_MEDIA_TYPE", http=415, headers=headers)


def too_large(limit: int) -> HttpError:
    """Give the refusal of a body beyond a limit: 413."""
    return HttpError(
        f"the body is larger than {limit} bytes", "BODY_TOO_LARGE", http=413
    )


@lru_cache(maxsize=256)
def body_kind(content_type: bytes | None, offers: tuple[str, ...]) -> str:
    """Give the media type of a request body; none said is the first offer.

    Raises HttpError (415) where it is not among the offers.
    """
    if content_type is None:
        return offers[0]
    name, _, parameters = content_type.decode("latin-1").lower().partition(";")
    name = _SAME.get(name.strip(), name.strip())
    charset = parameters.replace(" ", "").replace('"', "").partition("charset=")[2]
    if name in offers and charset in ("", "utf-8", "utf8"):
        return name
    raise unsupported(f"the body must be {' or '.join(offers)}, in UTF-8")


@lru_cache(maxsize=256)
def coding_for(accept_encoding: bytes | None) -> str:
    """Give the content coding that a client likes best; "" is none."""
    if not accept_encoding:
        return ""
    taken = _qualities(accept_encoding)
    rest = taken.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: taken.get(coding, rest))
    quality = taken.get(best, rest)
    return best if quality > 0 and quality >= taken.get("identity", 0.0) else ""


def _pack(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return zlib.compress(body, level=5, wbits=31)
    if coding == "br":
        return bytes(brotli.compress(body, quality=4))
    return zstandard.ZstdCompressor(level=3).compress(body)


async def compress(body: bytes, coding: str) -> bytes:
    """Give the body in a content coding; a large one is packed in a thread."""
    if len(body) > _INLINE_BYTES:
        return await asyncio.to_thread(_pack, body, coding)
    return _pack(body, coding)


def decompress(body: bytes, codings: bytes | None, limit: int) -> bytes:
    """Give a request body out of its content coding.

    Raises HttpError: 413 beyond the limit, 415 for an unknown coding or a second one,
    400 for a body that is not what it says.
    """
    if codings and codings.count(b",") > 0:
        raise unsupported("one content coding is enough")
    name = (codings or b"").decode("latin-1").lower().strip().removeprefix("x-")
    if name in ("", "identity"):
        return body
    if name not in _CODINGS:
        told = "the body's content coding must be gzip, br or zstd"
        raise unsupported(told, "gzip, br, zstd")
    try:
        body, whole = _unpack(body, name, limit + 1)
    except _FAILURES:
        whole = False
    if len(body) > limit:
        raise too_large(limit)
    if not whole:
        raise HttpError(f"the body is not {name}")
    return body


def _unpack(body: bytes, coding: str, most: int) -> tuple[bytes, bool]:
    """Give at most so many bytes, so that no more is ever held; and if that is all."""
    if coding == "gzip":
        gzip = zlib.decompressobj(wbits=31)
        plain = gzip.decompress(body, most)
        return plain, gzip.eof and not gzip.unused_data  # a second member is refused
    if coding == "br":
        br = brotli.Decompressor()
        plain = bytes(br.process(body, output_buffer_limit=most))
        while not br.can_accept_more_data() and len(plain) < most:
            plain += br.process(b"", output_buffer_limit=most)
        return plain, br.is_finished()
    zstd = zstandard.ZstdDecompressor(max_window_size=2**23)
    plain = zstd.stream_reader(body).read(most)
    if len(plain) >= most:
        return plain, False
    whole = zstd.decompressobj()  # only reading it again tells the frame's end
    plain = whole.decompress(body)
    return plain, whole.eof and not whole.unused_data
