"""The relying party: which sites can be one, and the time that it takes to refuse."""

from collections.abc import Callable
from time import perf_counter

import cbor2
import pytest

from server.domain.factors.authenticator_responses import (
    InvalidResponse,
    read_assertion,
    read_creation,
)
from server.domain.factors.challenges import token_bytes_of
from server.domain.factors.relying_party import RelyingParty, relying_party
from tests.software_passkey import SoftwarePasskey

SITE = RelyingParty("localhost", "http://localhost:8080", "Academy")
CHALLENGE = bytes(48)


@pytest.mark.parametrize(
    ("url", "rp_id", "origin"),
    [
        ("https://academy.example", "academy.example", "https://academy.example"),
        ("https://Academy.Example/", "academy.example", "https://academy.example"),
        ("https://academy.example:443", "academy.example", "https://academy.example"),
        ("https://academy.example:80", "academy.example", "https://academy.example:80"),
        ("http://localhost:8080", "localhost", "http://localhost:8080"),
        ("http://localhost:80", "localhost", "http://localhost"),
    ],
)
def test_site_is_named_by_its_origin(url: str, rp_id: str, origin: str) -> None:
    """As browsers write it."""
    assert relying_party(url, "Academy") == RelyingParty(rp_id, origin, "Academy")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8080", "https://[2001:db8::1]"])
def test_site_without_a_name_is_none(url: str) -> None:
    """WebAuthn 5.1.2: an IP address has no valid domain."""
    assert relying_party(url, "Academy") is None


def test_credential_id_is_that_of_the_attested_data() -> None:
    """Otherwise a user could take the id of another user's passkey."""
    passkey = SoftwarePasskey()
    response = passkey.create(dict(SITE.creation_options(1, "ana", CHALLENGE, ())))
    assert SITE.verify_creation(read_creation(response)).sign_count == 0
    response["id"] = response["rawId"] = "AAAA"
    with pytest.raises(InvalidResponse):
        SITE.verify_creation(read_creation(response))


def test_credential_id_and_public_key_are_limited() -> None:
    """WebAuthn 7.1: an id has at most 1023 bytes."""
    options = dict(SITE.creation_options(1, "ana", CHALLENGE, ()))
    for passkey in (
        SoftwarePasskey(credential_id=bytes(1024)),
        SoftwarePasskey(more_key={-70_000: bytes(1024)}),
    ):
        with pytest.raises(InvalidResponse, match="too long"):
            SITE.verify_creation(read_creation(passkey.create(options)))


def test_public_key_is_a_point_of_its_curve() -> None:
    """Otherwise the account would have a factor that never works."""
    options = dict(SITE.creation_options(1, "ana", CHALLENGE, ()))
    passkey = SoftwarePasskey(more_key={-2: bytes(31) + b"x"})
    with pytest.raises(InvalidResponse, match="ValueError"):
        SITE.verify_creation(read_creation(passkey.create(options)))


def test_unknown_passkey_takes_as_long_as_a_wrong_signature() -> None:
    """R2: a signature is verified in either case."""
    options = dict(SITE.request_options(CHALLENGE))
    assertion = read_assertion(SoftwarePasskey(user_handle=bytes(8)).get(options))
    other = cbor2.dumps(SoftwarePasskey().cose())

    def seconds(refuse: Callable[[], object]) -> float:
        times = []
        for _ in range(50):
            begun = perf_counter()
            assert refuse() is None
            times.append(perf_counter() - begun)
        return min(times)

    unknown = seconds(lambda: SITE.verify_assertion(assertion, None))
    wrong = seconds(lambda: SITE.verify_assertion(assertion, other))
    assert 0.5 < unknown / wrong < 2


def test_challenge_is_the_token_that_a_store_knows() -> None:
    """The bytes that are signed are those of the challenge's token."""
    options = SITE.request_options(CHALLENGE)
    assert token_bytes_of(options["challenge"]) == CHALLENGE
