"""Links in e-mails without PUBLIC_URL: they lead to the address of HTTP_LISTEN."""

import pytest

from server.composition.outbox import public_url
from server.config import load


@pytest.mark.parametrize(
    ("http_listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
    ],
)
def test_links_without_public_url_can_be_opened(http_listen: str, url: str) -> None:
    """No browser connects to the unspecified address."""
    assert public_url(load(http_listen=http_listen, public_url="")) == url


def test_links_lead_to_public_url() -> None:
    settings = load(http_listen="0.0.0.0:1", public_url="https://academy.example")
    assert public_url(settings) == "https://academy.example"
