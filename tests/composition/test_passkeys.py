"""The site that passkeys belong to."""

import pytest

from server.composition.log_ins.rules import site_url
from server.config import load


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"public_url": "https://academy.example"}, "https://academy.example"),
        ({"public_url": "https://a.example", "debug": True}, "https://a.example"),
        ({"debug": True, "http_listen": "127.0.0.1:81"}, "http://localhost:81"),
        ({"debug": False}, ""),
    ],
)
def test_site_is_public_url_or_this_machine(
    settings: dict[str, object], url: str
) -> None:
    """A name is guessed only where nobody else can reach the service."""
    assert site_url(load(**{"public_url": "", **settings})) == url
