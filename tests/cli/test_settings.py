"""Start errors: every faulty setting is named, all at once, without a traceback."""

import os
import sys
from collections.abc import Coroutine
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import terminal
from server.cli.main import cli
from server.config import ConfigurationError, Settings, load
from server.config_addresses import check_server_address, overlap
from tests.logs import captured_lines
from tests.processes import FREE_PORTS

SERVERS = {
    "DATABASE_URL": "postgresql://h/d",
    "REDIS_URL": "redis://h",
    "SECRET_KEY": "0123456789abcdef" * 2,
}


@pytest.mark.parametrize(
    ("command", "settings", "sentences"),
    [
        ("serve", {}, ["DATABASE_URL", "REDIS_URL", "SECRET_KEY"]),
        (
            "serve",
            {"SECRET_KEY": "short", "DATABASE_URL": "postgresql://h:port/d"},
            ["SECRET_KEY: must have at least 32", "DATABASE_URL: must", "REDIS_URL"],
        ),
        ("serve", {"DATABASE_URL_FILE": "/nope"}, ["DATABASE_URL_FILE cannot be read"]),
        ("up", {"TRUSTED_PROXIES": "foo"}, ["TRUSTED_PROXIES:"]),
        ("edge --server x:1", {"DEBUG": "1", "HTTP_LISTEN": "0.0.0.0:1"}, ["DEBUG on"]),
        (
            "up",
            {"SMTP_URL": "http://h", "MAIL_FROM": "ana\nBcc: b@x.co"},
            ["SMTP_URL: must be smtp://", "MAIL_FROM: must be an e-mail address"],
        ),
        (
            "serve",
            {"SECRET_KEY": "a" * 64},
            ["SECRET_KEY: must have at least 8 distinct"],
        ),
        ("up", {"HTTP_LISTEN": "0.0.0.0:1"}, ["HTTP_LISTEN: with DEBUG on"]),
        (
            "up",
            {"GRPC_LISTEN": "x", "REFRESH_IDLE": "soon", "DATABASE_URL": "mysql://x"},
            ["GRPC_LISTEN", "REFRESH_IDLE", "DATABASE_URL"],
        ),
        ("up", {"TLS_CERT": "/nope.pem"}, ["TLS_KEY: must be set, because TLS_CERT"]),
        (
            "serve",
            {**SERVERS, "GRPC_LISTEN": "0.0.0.0:1", "HTTP_LISTEN": "[::]:2"},
            ["GRPC_LISTEN: 0.0.0.0:1 can be reached", "HTTP_LISTEN: [::]:2 can be"],
        ),
        (
            "edge --server academy:1",
            {},
            ["SERVER_CA: academy:1 is not a loopback address"],
        ),
        (
            "edge --server localhost:1",
            {"HTTP_LISTEN": "0.0.0.0:1"},
            ["HTTP_LISTEN: 0.0.0.0:1 can be reached from other machines"],
        ),
        (
            "serve",
            {"DATABASE_POOL_SIZE": "0", "STATEMENT_TIMEOUT": "0s"},
            [
                "DATABASE_POOL_SIZE: must be greater than or equal to 1",
                "STATEMENT_TIMEOUT: must be from 0.1s to 1h",
            ],
        ),
        (
            "serve",
            {
                "DATABASE_READ_URL": "postgresql://a,b/d",
                "DATABASE_READ_MAX_LAG": "2s",
            },
            [
                "DATABASE_READ_URL: must name one host",
                "DATABASE_READ_MAX_LAG: must be from 3s to 1h",
            ],
        ),
        (
            "serve",
            {"DATABASE_READ_URL": "mysql://h/d", "DATABASE_READ_MAX_LAG": "61m"},
            [
                "DATABASE_READ_URL: must begin with postgresql://",
                "DATABASE_READ_MAX_LAG: must be from 3s to 1h",
            ],
        ),
        (
            "serve",
            {"DATABASE_POOL_SIZE": "1001", "DATABASE_POOL_TIMEOUT": "11s"},
            [
                "DATABASE_POOL_SIZE: must be less than or equal to 1000",
                "DATABASE_POOL_TIMEOUT: must be at most STATEMENT_TIMEOUT",
            ],
        ),
        (
            "up",
            {"RATE_LIMITS": '{"blatam.auth.v1.AuthService/Nothing": []}'},
            ["RATE_LIMITS: unknown RPC: blatam.auth"],
        ),
        (
            "up",
            {"WORKERS": "2", "TLS_CERT": "/nope.pem", "TLS_KEY": "/nope.pem"},
            ["TLS_CERT: /nope.pem cannot be read"],
        ),
        (
            "serve",
            {**SERVERS, "ERASURE_LOG": "var/erasures"},
            ["ERASURE_LOG: must be an absolute path"],
        ),
        (
            "serve",
            {**SERVERS, "WORKERS": "2", "METRICS_LISTEN": "0.0.0.0:1"},
            ["METRICS_LISTEN: 0.0.0.0:1 can be reached from other machines: it has no"],
        ),
        *(
            (
                "serve",
                {**SERVERS, "WORKERS": workers, **FREE_PORTS, "ERASURE_LOG": "/no/log"},
                ["ERASURE_LOG: /no/log cannot be written: No such file or directory"],
            )
            for workers in ("1", "2")
        ),
        *(
            (
                command,
                {**SERVERS, "WORKERS": workers, "HTTP_LISTEN": "127.0.0.1:50051"},
                ["HTTP_LISTEN: 127.0.0.1:50051 is the address of GRPC_LISTEN"],
            )
            for command in ("serve", "up")
            for workers in ("1", "2")
        ),
        (
            "edge --server localhost:1",
            {"METRICS_LISTEN": "127.0.0.1:8080"},
            ["METRICS_LISTEN: 127.0.0.1:8080 is the address of HTTP_LISTEN"],
        ),
    ],
)
def test_faulty_settings_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    settings: dict[str, str],
    sentences: list[str],
) -> None:
    """R37: all faults are printed at once, and nothing is started."""
    monkeypatch.chdir(tmp_path)
    # Valid single settings configure logging; the runner closes its streams.
    monkeypatch.setattr(terminal, "configure", lambda *_: None)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("workers were started"))
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    env = {"STATE_DIR": str(tmp_path / "state"), **settings}
    result = CliRunner().invoke(cli, command.split(), env=env)
    assert result.exit_code == 1
    assert all(sentence in result.stderr for sentence in sentences), result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("localhost:1", "127.0.0.1:1", True),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "[::]:1", True),
        ("[::]:1", "[::1]:1", True),
        ("0.0.0.0:1", "[::]:1", True),
        ("0.0.0.0:1", "[::1]:1", False),
        ("127.0.0.1:1", "", False),
        ("127.0.0.1:1", "unix:/tmp/x", False),
    ],
)
def test_listeners_overlap_if_they_need_the_same_port(
    first: str, second: str, expected: bool
) -> None:
    assert overlap(first, second) is overlap(second, first) is expected


def test_supervisor_says_that_metrics_are_served_in_plaintext(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the workers start: they have no metrics listener on the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "configure", lambda *_: None)
    monkeypatch.setattr(os, "execv", lambda *_: sys.exit(0))
    values = {"WORKERS": "2", "METRICS_LISTEN": "0.0.0.0:1", "ALLOW_PLAINTEXT": "1"}
    with captured_lines(event="listening without TLS") as lines:
        assert CliRunner().invoke(cli, ["serve"], env=SERVERS | values).exit_code == 0
    assert [line["setting"] for line in lines] == ["METRICS_LISTEN"]


@pytest.mark.parametrize(
    "address",
    [
        *("foo", "", ":1", "h:", "h:0", "h:080", "h:99999", "127.0.0.1:\u0665"),
        *("::1:1", "127.0.0.256:1", "a b:1", "-h:1", "h..x:1", "http://h:1"),
    ],
)
def test_edge_refuses_an_address_that_is_not_host_and_port(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The address is checked before the edge listens."""
    monkeypatch.setattr("server.cli.serve.run_async", _unexpected)
    result = CliRunner().invoke(cli, ["edge", "--server", address])
    assert result.exit_code == 2
    assert "must be HOST:PORT" in result.stderr


def _unexpected(work: Coroutine[None, None, None], _: Settings) -> None:
    work.close()
    pytest.fail("the edge was started")


@pytest.mark.parametrize(
    "address",
    ["academy:50051", "grpc_1.academy.example:1", "10.0.0.1:65535", "[::1]:1"],
)
def test_server_address_may_have_a_host_name(address: str) -> None:
    assert check_server_address(address) == address


LIMITS = '{"pkg.Service/Rpc": [{"by": ["address"], "limit": %s, "per": %s}]}'


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        *(
            ("refresh_idle", value, "must be a duration such as 30d")
            for value in (
                "\u0665s",
                "1e3",
                "nan",
                "inf",
                "007",
                "-1s",
                "1_0s",
                "5 s",
                "5",
                ".5",
            )
        ),
        ("refresh_idle", "999999999d", "must be at most 36500d"),
        ("user_retention", "0", "must be a duration such as 30d"),
        ("http_keep_alive", "0s", "must be longer than 0s"),
        ("workers", "0", "must be greater than or equal to 1"),
        ("workers", "65", "must be less than or equal to 64"),
        ("workers", "two", "must be a whole number, such as 12"),
        ("lame_duck", "2", "must be a duration such as 30d"),
        ("grpc_max_connection_age", "-1s", "must be a duration such as 30d"),
        ("refresh_idle", "0s", "must be longer than 0s"),
        ("refresh_absolute", "0d", "must be longer than 0s"),
        ("audit_retention", "23h", "must be at least 1d"),
        *(
            ("http_listen", f"127.0.0.1:{port}", "must be ADDRESS:PORT")
            for port in ("\u0668\u0660", "080", "70000", "-1", "+80", "8_0", "")
        ),
        *(
            ("http_listen", address, "must be ADDRESS:PORT")
            for address in ("[127.0.0.1]:80", "::1:80", "[::1:80", "127.0.0.01:80")
        ),
        ("metrics_listen", "9464", "must be ADDRESS:PORT"),
        ("metrics_listen", "unix:/tmp/x", "must be ADDRESS:PORT"),
        *(
            (
                "trusted_proxies",
                network,
                f"{network!r} must be an IP address, or",
            )
            for network in (
                "10.0.0.0/\u0668",
                "10.0.0.0/08",
                "10.0.0.1/8",
                "10",
                "proxy",
            )
        ),
        *(
            ("imported_hash_max_cost", value, "must be a whole number")
            for value in ("\u0665", "012", "1_2", "+12", "12.0", "1e1", "nan", "")
        ),
        ("imported_hash_max_cost", "0", "must be greater than or equal to 1"),
        ("debug", "\u0661", "must be 1 or 0"),
        (
            "rate_limits",
            LIMITS % ('"\u0665"', '"60s"'),
            "0.limit: must be a valid integer",
        ),
        ("rate_limits", LIMITS % ("true", '"60s"'), "0.limit: must be a valid integer"),
        ("rate_limits", LIMITS % ("1e3", '"60s"'), "0.limit: must be a valid integer"),
        ("rate_limits", LIMITS % ("NaN", '"60s"'), "0.limit: must be a valid integer"),
        ("rate_limits", LIMITS % ("05", '"60s"'), "must be JSON"),
        ("rate_limits", LIMITS % ("5", '"0s"'), "0.per: must be longer than 0s"),
        ("rate_limits", LIMITS % ("5", '"\u0666\u0660"'), "0.per: must be a duration"),
        ("rate_limits", '{"a": [], "a": []}', "must not contain a twice"),
        ("rate_limits", '{"a": [{"limit": 5, "per": "1s"}]}', "by is required"),
        (
            "rate_limits",
            '{"a": [{"by": ["address"], "limit": 5, "per": "1s", "x": 1}]}',
            "x is not a known field",
        ),
        ("tls_key", "-----BEGIN PRIVATE KEY-----", "must be the path of a PEM file"),
        ("allow_plaintext", "maybe", "must be 1 or 0"),
        ("service_certificates", "billing", "must be JSON"),
        ("service_certificates", "[]", "must be a valid dictionary"),
        ("service_certificates", '{"*.x": "a"}', "'*.x' must be a DNS name or a URI"),
        ("service_certificates", '{"x.y": ""}', "x.y must have a value: the name of a"),
        ("service_certificates", '{"x": "a", "x": "b"}', "must not contain x twice"),
        ("service_certificates", '{"x": "a", "X": "b"}', "must not contain x twice"),
        ("service_certificates", '{"x": 1}', "x: must be a valid string"),
        *(
            ("otel_exporter_otlp_endpoint", url, "must be a URL such as http://")
            for url in ("collector:4318", "http://u:p@h:4318", "http://h:x", "h")
        ),
        *(
            ("otel_traces_sampler_arg", value, "must be a number from 0 to 1")
            for value in ("1.1", "-0", "nan", ".5", "1e-3", "\u0661", "")
        ),
        ("log_level", "loud", "must be 'debug', 'info'"),
        ("log_format", "xml", "must be 'json' or 'console'"),
        ("public_url", "academy.example", "must be an origin such as https://"),
        ("cors_origins", "*", "must be an origin such as https://"),
        ("database_pooler", "session", "must be 'none' or 'transaction'"),
        (
            "smtp_url",
            "smtp://h:\u0662\u0665",
            "must be smtp://[USER:PASSWORD@]HOST:PORT",
        ),
        ("smtp_url", "smtp://h?timeout=1", "the only parameter is starttls"),
        ("redis_url", "redis://h/\u0660", "must have the number of a database"),
        ("redis_url", "redis://h/one", "must have the number of a database"),
        ("redis_url", "redis://h:06379", "must have a number from 1 to 65535"),
        ("redis_url", "redis://h?db=1e1", "db must be the number of a database"),
        (
            "redis_url",
            "redis://h?socket_timeout=nan",
            "socket_timeout is not supported",
        ),
        ("redis_url", "redis://h?ssl_cert_reqs=none", "ssl_cert_reqs is not supported"),
        ("redis_url", "redis+cluster://h1:\u0667,h2", "must list its nodes as HOST"),
        ("redis_url", "redis+sentinel://h", "must have the name of the service"),
    ],
)
def test_settings_refuse_python_only_notation(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    """Numbers are ASCII digits without signs, exponents or leading zeros."""
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError) as error:
        load()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{name.upper()}: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refresh_idle", "1.5h"),
        ("refresh_grace", "0s"),
        ("user_retention", "0s"),
        ("http_listen", "[::1]:0"),
        ("metrics_listen", "0.0.0.0:9464"),
        ("metrics_listen", ""),
        ("trusted_proxies", "10.0.0.0/8, ::1"),
        ("otel_exporter_otlp_endpoint", "https://collector.example/otlp"),
        ("otel_traces_sampler_arg", "0.05"),
        ("redis_url", "rediss://ana:x@h:6380/1?ssl_cert_reqs=none&protocol=3"),
        ("redis_url", "unix:///run/valkey.sock?db=2"),
        ("redis_url", "rediss+cluster://ana:x@h1:7001,h2:7002?ssl_ca_certs=ca.pem"),
        ("redis_url", "redis+sentinel://h1,h2/academy?db=1&sentinel_password=x"),
        ("smtp_url", "smtp://ana:x@[::1]:587?starttls=required"),
        ("public_url", "https://academy.example:8443/"),
        ("rate_limits", LIMITS % ("5", '"60s"')),
        ("service_certificates", '{"Billing.internal": "a", "spiffe://A/b": "c"}'),
        ("tls_cert", ""),
    ],
)
def test_settings_accept_well_formed_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name.upper(), value)
    assert name in load().model_fields_set


@pytest.mark.parametrize("command", ["serve", "edge --server h:1"])
def test_traces_without_their_packages_are_refused(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The endpoint is set, but the extra `otel` is not installed."""
    monkeypatch.setattr("server.cli.serve.run_async", _unexpected)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # cannot import
    monkeypatch.delitem(sys.modules, "server.observability.tracing.sdk", raising=False)
    env = {
        "DATABASE_URL": "postgresql://h/d",
        "REDIS_URL": "redis://h",
        "SECRET_KEY": "0123456789abcdef" * 4,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    }
    result = CliRunner().invoke(cli, command.split(), env=env)
    assert result.exit_code == 1
    assert result.stderr.startswith("OTEL_EXPORTER_OTLP_ENDPOINT: ")
    assert "pip install -r requirements-otel.lock" in result.stderr
