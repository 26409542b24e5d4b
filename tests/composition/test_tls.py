"""The TLS settings: each invalid file and combination is named at start."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from server.composition.tls import open_listener_tls
from server.composition.tls.settings import listener_credentials, upstream_credentials
from server.config import ConfigurationError, load
from tests.certificates import Files, chain_pem, key_pem
from tests.logs import captured_lines

EXPIRED = datetime(2026, 1, 2, tzinfo=UTC)
Change = Callable[[Files], object]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def remove_key(files: Files) -> None:
    (files.folder / "key.pem").unlink()


def write_der(files: Files) -> None:
    pem = (files.folder / "cert.pem").read_text()
    (files.folder / "cert.pem").write_bytes(ssl.PEM_cert_to_DER_cert(pem))


def write_other_key(files: Files) -> None:
    files.write_key(files.issue())


def write_text_as_key(files: Files) -> None:
    (files.folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n")


def write_encrypted_key(files: Files) -> None:
    key = serialization.load_pem_private_key(key_pem(files.issue()), None)
    (files.folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def write_ed25519_key(files: Files) -> None:
    (files.folder / "key.pem").write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def write_expired(files: Files) -> None:
    files.write(files.issue(not_after=EXPIRED))


def write_future(files: Files) -> None:
    files.write(files.issue(not_before=datetime(2999, 1, 2, tzinfo=UTC)))


def write_authority_first(files: Files) -> None:
    path = files.folder / "cert.pem"
    path.write_bytes(files.authority.cert_pem.bytes() + path.read_bytes())


def write_leaf_as_authority(files: Files) -> None:
    (files.folder / "ca.pem").write_bytes(chain_pem(files.issue()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove_key, "TLS_KEY: {folder}/key.pem cannot be read (No such file"),
        (write_der, "TLS_CERT: {folder}/cert.pem has no valid PEM certificate"),
        (
            write_other_key,
            "TLS_KEY: {folder}/key.pem does not match the certificate in",
        ),
        (write_text_as_key, "TLS_KEY: {folder}/key.pem has no valid PEM private key"),
        (write_encrypted_key, "TLS_KEY: {folder}/key.pem is encrypted: decrypt it"),
        (write_ed25519_key, "TLS_KEY: {folder}/key.pem must be an RSA key"),
        (write_expired, "TLS_CERT: {folder}/cert.pem expired at 2026-01-02 00:00 UTC"),
        (write_future, "TLS_CERT: {folder}/cert.pem is not valid before 2999-01-02"),
        (write_authority_first, "TLS_CERT: {folder}/cert.pem must begin with the"),
        (
            write_leaf_as_authority,
            "CLIENT_CA: {folder}/ca.pem must contain only certificates",
        ),
    ],
)
def test_tls_files_that_are_invalid_are_named(
    files: Files, change: Change, sentence: str
) -> None:
    change(files)
    with pytest.raises(ConfigurationError) as error:
        listener_credentials(files.settings("client_ca"))
    (line,) = str(error.value).splitlines()
    assert line.startswith(sentence.format(folder=files.folder))


def test_expired_authority_beside_a_valid_one_is_accepted(files: Files) -> None:
    """While an authority is replaced; one that is alone is refused."""
    path = files.folder / "ca.pem"
    valid, expired = path.read_bytes(), files.issue_authority(EXPIRED)
    path.write_bytes(expired + valid)
    assert listener_credentials(files.settings("client_ca"))
    path.write_bytes(expired)
    with pytest.raises(
        ConfigurationError, match=r"CLIENT_CA: .* expired at 2026-01-02"
    ):
        listener_credentials(files.settings("client_ca"))


def test_key_that_every_user_can_read_is_logged(files: Files) -> None:
    key = files.folder / "key.pem"
    for mode, count in ((0o644, 1), (0o640, 0)):
        key.chmod(mode)
        with captured_lines(event="private key is readable by every user") as lines:
            open_listener_tls(files.settings())
        assert len(lines) == count


def test_tls_names_every_invalid_file(files: Files) -> None:
    remove_key(files)
    write_leaf_as_authority(files)
    with pytest.raises(ConfigurationError) as error:
        listener_credentials(files.settings("client_ca"))
    names = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert names == ["TLS_KEY", "CLIENT_CA"]


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        ({"tls_cert": "c.pem"}, ["TLS_KEY: must be set, because TLS_CERT is set"]),
        ({"tls_key": "k.pem"}, ["TLS_CERT: must be set, because TLS_KEY is set"]),
        ({"client_ca": "ca.pem"}, ["CLIENT_CA: client certificates need TLS"]),
        (
            {"service_certificates": {"billing.internal": "billing"}},
            ["SERVICE_CERTIFICATES: needs verified client certificates: set CLIENT_CA"],
        ),
        (
            {"grpc_listen": "0.0.0.0:1", "http_listen": "[::]:2"},
            [
                "GRPC_LISTEN: 0.0.0.0:1 can be reached from other machines: set TLS_",
                "HTTP_LISTEN: [::]:2 can be reached from other machines: set TLS_CERT",
            ],
        ),
        ({"http_listen": "192.0.2.1:80"}, ["HTTP_LISTEN: 192.0.2.1:80 can be"]),
        (
            {"metrics_listen": "0.0.0.0:3"},
            ["METRICS_LISTEN: 0.0.0.0:3 can be reached from other machines: it has no"],
        ),
    ],
)
def test_tls_settings_that_contradict_are_named(
    values: dict[str, Any], sentences: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as error:
        listener_credentials(load(**values))
    lines = str(error.value).splitlines()
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert line.startswith(sentence)


def test_plaintext_beyond_loopback_is_logged() -> None:
    """With ALLOW_PLAINTEXT it is served, and each listener is named in the log."""
    settings = load(
        grpc_listen="0.0.0.0:1", http_listen="127.0.0.1:2", allow_plaintext=True
    )
    with captured_lines(event="listening without TLS") as lines:
        assert open_listener_tls(settings).server_credentials is None
    assert [(line["setting"], line["address"]) for line in lines] == [
        ("GRPC_LISTEN", "0.0.0.0:1")
    ]


def test_metrics_beyond_loopback_need_permission_with_tls_too(files: Files) -> None:
    """The listener has no TLS. The socket of a worker is no address of a network."""
    beyond = {"metrics_listen": "0.0.0.0:3"}
    for with_grpc in (True, False):
        with pytest.raises(ConfigurationError, match="ALLOW_PLAINTEXT=1"):
            open_listener_tls(files.settings(**beyond), with_grpc=with_grpc)
        settings = files.settings(**beyond, allow_plaintext=True)
        with captured_lines(event="listening without TLS") as lines:
            open_listener_tls(settings, with_grpc=with_grpc)
        assert [line["setting"] for line in lines] == ["METRICS_LISTEN"]
    socket = {"metrics_listen": "unix:/tmp/folder/worker.sock"}
    open_listener_tls(files.settings().model_copy(update=socket))


def test_edge_without_grpc_listener_checks_http_only(files: Files) -> None:
    """GRPC_LISTEN and CLIENT_CA belong to the server behind it."""
    write_leaf_as_authority(files)
    settings = files.settings("client_ca", grpc_listen="0.0.0.0:1")
    tls = open_listener_tls(settings, with_grpc=False)
    assert tls.ssl_context
    plaintext = load(grpc_listen="0.0.0.0:1")
    assert open_listener_tls(plaintext, with_grpc=False).ssl_context is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "SERVER_CA: academy:50051 is not a loopback address: set SERVER_CA"),
        ({"client_cert": "c.pem"}, "CLIENT_KEY: must be set, because CLIENT_CERT is"),
        (
            {"client_cert": "c.pem", "client_key": "k.pem", "allow_plaintext": True},
            "CLIENT_CERT: a client certificate needs TLS: set SERVER_CA",
        ),
        ({"server_ca": "/nowhere.pem"}, "SERVER_CA: /nowhere.pem cannot be read"),
    ],
)
def test_edge_upstream_settings_that_are_invalid_are_named(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        upstream_credentials(load(**values), "academy:50051")
    assert str(error.value).startswith(sentence)


def test_edge_upstream_in_plaintext_needs_loopback_or_permission() -> None:
    assert upstream_credentials(load(), "localhost:50051") is None
    assert upstream_credentials(load(allow_plaintext=True), "academy:50051") is None
