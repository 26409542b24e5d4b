"""Media types and content codings: what a client takes and sends (RFC 9110)."""

import asyncio
import zlib
from collections.abc import Sequence
from functools import lru_cache

import brotli  # type: ignore[import-untyped]
import zstandard

from edge.errors import Refused

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


@lru_cache(maxsize=256)
def _qualities(header: str) -> dict[str, float]:
    """Give the values of an Accept-like header with their weights (12.4.2)."""
    found: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = _weight(parameter[2:])
        if name:
            found[_SAME.get(name, name)] = weight
    return found


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


@lru_cache(maxsize=256)
def choose(accept: bytes | None, offers: tuple[str, ...]) -> str:
    """Give the offer that a client likes best, the first of equals.

    Raises Refused (406) where it takes none.
    """
    if accept is None or not accept.strip():
        return offers[0]
    taken = _qualities(accept.decode("latin-1"))

    def quality(offer: str) -> float:
        for name in (offer, offer.partition("/")[0] + "/*", "*/*"):
            if name in taken:
                return taken[name]
        return 0.0

    best = max(offers, key=quality)
    if quality(best) > 0:
        return best
    told = f"this answer comes as {' or '.join(offers)}"
    raise Refused(told, "NOT_ACCEPTABLE", http=406)


@lru_cache(maxsize=256)
def body_kind(content_type: bytes | None, offers: tuple[str, ...]) -> str:
    """Give the media type of a request body; none said is JSON.

    Raises Refused (415) where it is not among the offers.
    """
    if content_type is None:
        return offers[0]
    name, _, parameters = content_type.decode("latin-1").lower().partition(";")
    name = _SAME.get(name.strip(), name.strip())
    charset = parameters.replace(" ", "").replace('"', "").partition("charset=")[2]
    if name in offers and charset in ("", "utf-8", "utf8"):
        return name
    told = f"the body must be {' or '.join(offers)}, in UTF-8"
    raise Refused(told, "UNSUPPORTED_MEDIA_TYPE", http=415)


@lru_cache(maxsize=256)
def coding_for(accept_encoding: bytes | None) -> str:
    """Give the content coding that a client likes best; "" is none."""
    if not accept_encoding:
        return ""
    taken = _qualities(accept_encoding.decode("latin-1"))
    rest = taken.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: taken.get(coding, rest))
    quality = taken.get(best, rest)
    return best if quality > 0 and quality >= taken.get("identity", 0.0) else ""


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=5, wbits=31)
    return packer.compress(body) + packer.flush()


def _pack(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return _gzip(body)
    if coding == "br":
        packed: bytes = brotli.compress(body, quality=4)
        return packed
    return zstandard.ZstdCompressor(level=3).compress(body)


async def compress(body: bytes, coding: str) -> bytes:
    """Give the body in a content coding; a large one is packed in a thread."""
    if len(body) > _INLINE_BYTES:
        return await asyncio.to_thread(_pack, body, coding)
    return _pack(body, coding)


def decompress(body: bytes, codings: bytes | None, limit: int) -> bytes:
    """Give a request body out of its content codings, the last applied first.

    Raises Refused: 413 beyond the limit, 415 for an unknown coding, 400 for a
    body that is not what it says.
    """
    if codings is None:
        return body
    for coding in _listed(codings):
        try:
            body = _unpack(body, coding, limit)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            raise Refused(f"the body is not {coding}") from None
        if len(body) > limit:
            raise too_large(limit)
    return body


def _listed(codings: bytes) -> Sequence[str]:
    names = [name.strip() for name in codings.decode("latin-1").lower().split(",")]
    return [name for name in reversed(names) if name not in ("", "identity")]


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    """Give at most a byte more than the limit, so that nothing larger is ever held."""
    if coding in ("gzip", "x-gzip"):
        unpacker = zlib.decompressobj(wbits=31)
        plain = unpacker.decompress(body, limit + 1)
        if not unpacker.eof and len(plain) <= limit:
            raise zlib.error
        return plain
    if coding == "br":
        return _unbrotli(body, limit)
    if coding == "zstd":
        return _unzstd(body, limit)
    told = "the body's content coding must be gzip, br or zstd"
    raise Refused(
        told,
        "UNSUPPORTED_MEDIA_TYPE",
        http=415,
        headers=[(b"accept-encoding", b"gzip, br, zstd")],
    )


def _unzstd(body: bytes, limit: int) -> bytes:
    """Read up to the limit first; only reading it again tells the frame's end."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**23)
    plain = unpacker.stream_reader(body).read(limit + 1)
    if len(plain) <= limit:
        whole = unpacker.decompressobj()
        plain = whole.decompress(body)
        if not whole.eof:
            raise zstandard.ZstdError
    return plain


def _unbrotli(body: bytes, limit: int) -> bytes:
    unpacker = brotli.Decompressor()
    plain: bytes = unpacker.process(body, output_buffer_limit=limit + 1)
    while not unpacker.can_accept_more_data() and len(plain) <= limit:
        plain += unpacker.process(b"", output_buffer_limit=limit + 1)
    if not unpacker.is_finished() and len(plain) <= limit:
        raise brotli.error
    return plain


def too_large(limit: int) -> Refused:
    """Give the refusal of a body beyond a limit: 413."""
    return Refused(f"the body is larger than {limit} bytes", "BODY_TOO_LARGE", http=413)
