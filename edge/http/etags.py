"""Entity tags: one covers every byte of a response, and names the resource's version.

The strong tag of a resource is "<version>;<digest>": If-None-Match compares all of it,
If-Match the version alone, so that a change of an embedded resource makes a cached
copy stale but does not refuse an update (RFC 9110 8.8.3 and 13.1). The response to a
change has the tag of its version alone.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b

from edge.errors import Code, Header, HttpError

_DIGEST_BYTES = 12
_TAG = re.compile(rb'"[^"]*"')  # without its W/; it may hold a comma
_BARE_TAG = re.compile(r'[^",/]+')  # many clients omit the quotes
_MEMBER = re.compile(r'(W/)?"([^"]*)"')
# RFC 9110 5.6.1: members may be empty.
_TAG_LIST = re.compile(r'(?:[ \t,]*(?:W/)?"[^"]*"[ \t]*(?=,|$))+[ \t,]*')
_MAX_VERSIONS = 4  # of one If-Match; each of them takes a call
_SUFFIX = re.compile(rf";[0-9a-f]{{{2 * _DIGEST_BYTES}}}(?:;[a-z]+)?$")


def version_tag(version: str) -> bytes:
    """Return the tag of a version alone, for responses to changes; b"" without one."""
    if version and version.isascii() and version.isprintable() and '"' not in version:
        return b'"%s"' % version.encode()
    return b""


def digest(body: bytes) -> str:
    """Return the digest of a body, which is without its content coding."""
    return blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()


def entity_tag(body_digest: str, version: bytes, coding: str = "") -> bytes:
    """Return the tag of a response: a strong one if there is a version's tag.

    The strong tag names the content coding: the coded bytes follow from that and the
    digest.
    """
    if not version:
        return f'W/"{body_digest}"'.encode()
    suffix = f";{body_digest};{coding}" if coding else f";{body_digest}"
    return b'%s%s"' % (version[:-1], suffix.encode())


def is_unchanged(if_none_match: bytes, headers: Sequence[Header]) -> bool:
    """Compare If-None-Match with a response's tag, weakly (RFC 9110 13.1.2)."""
    etag = dict(headers).get(b"etag")
    if etag is None:
        return False
    return if_none_match == b"*" or etag.removeprefix(b"W/") in _TAG.findall(
        if_none_match
    )


def required_versions(if_match: str) -> list[str]:
    """Return the versions of which If-Match requires one; none: any version.

    The version alone is a tag, too: it is what a resource's own field says. A weak
    tag belongs to a response without a version, so it never matches (RFC 9110 13.1.1).
    Raises HttpError if no member can match.
    """
    if if_match == "*":
        return []
    if _BARE_TAG.fullmatch(if_match):
        return [_SUFFIX.sub("", if_match)]
    tags = _MEMBER.findall(if_match) if _TAG_LIST.fullmatch(if_match) else []
    strong = (_SUFFIX.sub("", tag) for weak, tag in tags if tag and not weak)
    versions = [*dict.fromkeys(strong)]
    if not versions:
        raise mismatch(
            "If-Match must be * or contain a strong entity tag of the resource"
        )
    if len(versions) > _MAX_VERSIONS:
        raise HttpError(f"If-Match must contain at most {_MAX_VERSIONS} entity tags")
    return versions


def mismatch(message: str) -> HttpError:
    """Return the error for a condition that is false: 412, as for a failed call."""
    return HttpError(message, "ETAG_MISMATCH", http=412, code=Code.ABORTED)
