"""Media types and content codings that a client accepts and sends (RFC 9110)."""

import asyncio
import re
import zlib
from functools import lru_cache

import brotli  # type: ignore[import-untyped]  # ships no types
import zstandard

from edge.errors import HttpError

JSON = "application/json"
PROTOBUF = "application/protobuf"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
_ALIASES = {
    "application/x-protobuf": PROTOBUF,
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
}
_CODINGS = ("zstd", "br", "gzip")  # supported, best first
_MAX_INLINE_BYTES = 64 * 1024  # more is compressed in a thread
_DECODE_ERRORS = (zlib.error, brotli.error, zstandard.ZstdError)
# RFC 9110 12.4.2; clients also send more digits, or none before the point.
_WEIGHT = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")
# RFC 9110 5.6.6: a parameter is a token, "=", and a token or a quoted string.
_PARAMETER = re.compile(r';[ \t]*([^;="\s]+)=("(?:[^"\\]|\\.)*"|[^;"\s]*)')


def _qualities(header: bytes) -> dict[str, float]:
    """Return the values of an Accept-like header with their weights (12.4.2)."""
    qualities: dict[str, float] = {}
    for part in header.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [p[2:].strip() for p in parameters if p.startswith("q=")]
        if name:
            quality = _weight(weights[-1]) if weights else 1.0
            qualities[_ALIASES.get(name, name)] = quality
    return qualities


def _weight(text: str) -> float:
    return min(float(text), 1.0) if _WEIGHT.fullmatch(text) else 0.0


@lru_cache(maxsize=256)
def choose(accept: bytes | None, offers: tuple[str, ...]) -> str:
    """Return the offer that a client prefers, the first of equals.

    Raises HttpError (406) where it accepts none.
    """
    if not accept or offers == ("*/*",):
        return offers[0]  # the type of a raw reply is known only after the call
    qualities = _qualities(accept)

    def quality(offer: str) -> float:
        names = (offer, offer.partition("/")[0] + "/*", "*/*")
        return next((qualities[name] for name in names if name in qualities), 0.0)

    best = max(offers, key=quality)
    if quality(best) > 0:
        return best
    message = f"this response is available as {' or '.join(offers)}"
    raise HttpError(message, "NOT_ACCEPTABLE", http=406)


def unsupported(message: str, accepted: str = "") -> HttpError:
    """Return the error for a body in an unsupported format: 415."""
    headers = [(b"accept-encoding", accepted.encode())] if accepted else []
    return HttpError(message, "UNSUPPORTED_MEDIA_TYPE", http=415, headers=headers)


def too_large(limit: int) -> HttpError:
    """Return the error for a body beyond a limit: 413."""
    return HttpError(
        f"the body is larger than {limit} bytes", "BODY_TOO_LARGE", http=413
    )


def media_type(content_type: bytes) -> tuple[str, dict[str, str]]:
    """Return the media type of a Content-Type, and its parameters (8.3.1)."""
    name, _, rest = content_type.decode("latin-1").lower().partition(";")
    parameters = {
        key: value.strip('"') for key, value in _PARAMETER.findall(f";{rest}")
    }
    return name.strip(), parameters


@lru_cache(maxsize=256)
def body_kind(content_type: bytes | None, offers: tuple[str, ...]) -> str:
    """Return the media type of a request body; the first offer if none is named.

    Parameters are ignored, but for a charset other than UTF-8. Raises HttpError (415)
    where the type is not among the offers.
    """
    if content_type is None:
        return offers[0]
    name, parameters = media_type(content_type)
    name = _ALIASES.get(name, name)
    if name in offers and parameters.get("charset", "utf-8") in ("utf-8", "utf8"):
        return name
    raise unsupported(f"the body must be {' or '.join(offers)}, in UTF-8")


@lru_cache(maxsize=256)
def coding_for(accept_encoding: bytes | None) -> str:
    """Return the content coding that a client prefers; "" for none."""
    if not accept_encoding:
        return ""
    qualities = _qualities(accept_encoding)
    rest = qualities.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: qualities.get(coding, rest))
    quality = qualities.get(best, rest)
    return best if quality > 0 and quality >= qualities.get("identity", 0.0) else ""


def _compressed(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return zlib.compress(body, level=5, wbits=31)
    if coding == "br":
        return bytes(brotli.compress(body, quality=4))
    return zstandard.ZstdCompressor(level=3).compress(body)


async def compress(body: bytes, coding: str) -> bytes:
    """Return a body in a content coding; a large one is compressed in a thread."""
    if len(body) > _MAX_INLINE_BYTES:
        return await asyncio.to_thread(_compressed, body, coding)
    return _compressed(body, coding)


def decompress(body: bytes, codings: bytes | None, limit: int) -> bytes:
    """Return a request body without its content coding.

    Raises HttpError: 413 beyond the limit, 415 for an unknown or a second coding,
    400 for a body that is not in the coding it names.
    """
    if codings and codings.count(b",") > 0:
        raise unsupported("the body must have at most one content coding")
    name = (codings or b"").decode("latin-1").lower().strip().removeprefix("x-")
    if name in ("", "identity"):
        return body
    if name not in _CODINGS:
        message = "the content coding of the body must be gzip, br or zstd"
        raise unsupported(message, "gzip, br, zstd")
    try:
        body, complete = _decompressed(body, name, limit + 1)
    except _DECODE_ERRORS:
        complete = False
    if len(body) > limit:
        raise too_large(limit)
    if not complete:
        raise HttpError(f"the body is not valid {name}")
    return body


def _decompressed(body: bytes, coding: str, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes, and whether these are all of the body."""
    if coding == "gzip":
        gzip = zlib.decompressobj(wbits=31)
        plain = gzip.decompress(body, limit)
        return plain, gzip.eof and not gzip.unused_data  # a second member is refused
    if coding == "br":
        br = brotli.Decompressor()
        plain = bytes(br.process(body, output_buffer_limit=limit))
        while not br.can_accept_more_data() and len(plain) < limit:
            plain += br.process(b"", output_buffer_limit=limit)
        return plain, br.is_finished()
    zstd = zstandard.ZstdDecompressor(max_window_size=2**23)
    plain = zstd.stream_reader(body).read(limit)
    if len(plain) >= limit:
        return plain, False
    frame = zstd.decompressobj()  # a stream reader does not report the frame's end
    plain = frame.decompress(body)
    return plain, frame.eof and not frame.unused_data
