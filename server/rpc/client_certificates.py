"""The names in the verified client certificate of a gRPC connection (CLIENT_CA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

# What the edge and other proxies add to the calls of their clients. Such a call is not
# one of the proxy itself, so the certificate of the connection does not identify its
# caller. `academy edge` sets x-forwarded-for on each call; no client can remove it.
_FORWARDING = ("x-forwarded-for", "forwarded", "via", "grpcgateway-user-agent")


def is_forwarded(metadata: Mapping[str, str | bytes]) -> bool:
    """Return whether a proxy made the call for its own client."""
    return any(name in metadata for name in _FORWARDING)


def alternative_names(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Return the DNS names, in lower case, and URIs of the client's certificate.

    A name of one kind that has the form of the other is left out, so that no DNS name
    is taken for a URI. gRPC has verified the certificate.
    """
    dns_names = _texts(auth_context.get("peer_dns", ()))
    uris = _texts(auth_context.get("peer_uri", ()))
    return (
        *(name.lower() for name in dns_names if ":" not in name),
        *(uri for uri in uris if ":" in uri),
    )


def _texts(values: Iterable[bytes]) -> Iterator[str]:
    return (value.decode() for value in values if value.isascii())
