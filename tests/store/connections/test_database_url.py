"""DATABASE_URL: every parameter of libpq is mapped, or refused in one sentence."""

import inspect
from pathlib import Path

import asyncpg
import pytest

from server.store.connections.database_url import parse_database_url

# https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS
LIBPQ_PARAMETERS = (
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "require_auth",
    "channel_binding",
    "connect_timeout",
    "client_encoding",
    "options",
    "application_name",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "replication",
    "gssencmode",
    "sslmode",
    "requiressl",
    "sslnegotiation",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslkeylogfile",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "target_session_attrs",
    "load_balance_hosts",
    "oauth_issuer",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_scope",
)


@pytest.mark.parametrize("name", LIBPQ_PARAMETERS)
def test_every_libpq_parameter_is_known(name: str) -> None:
    """None is passed on unchecked, none is called unknown."""
    sentence = ""
    try:
        parse_database_url(f"postgresql://h/d?{name}=nonsense")
    except ValueError as error:
        sentence = str(error)
    assert "is not a connection parameter" not in sentence
    assert not sentence or name in sentence


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("channel_binding=require", "use channel_binding=disable or prefer"),
        ("gssencmode=require", "gssencmode=require is not supported"),
        ("load_balance_hosts=random", "load_balance_hosts=random is not supported"),
        ("keepalives_idle=30", "keepalives_idle is not supported"),
        ("hostaddr=127.0.0.1", "hostaddr is not supported"),
        ("sslmode=on", "sslmode must be one of: allow, disable, prefer"),
        ("target_session_attrs=leader", "target_session_attrs must be one of"),
        ("sslrootcert=/nope/ca.crt", "sslrootcert names a file that cannot be read"),
        ("sslrootcert=system&sslmode=require", "requires sslmode=verify-full"),
        ("connect_timeout=\u0665", "connect_timeout must be a number of seconds"),
        ("connect_timeout=1e1", "connect_timeout must be a number of seconds"),
        ("connect_timeout=0", "connect_timeout must be a number of seconds"),
        ("port=5432,\u0665", "must have a number from 1 to 65535 as its port"),
        ("statement_timeout=5s", "options=-c%20name%3Dvalue"),
        ("pgbouncer=true", "pgbouncer is not a connection parameter"),
    ],
)
def test_database_url_error_names_unsupported_value(
    parameter: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        parse_database_url(f"postgresql://ana:hunter2@h/d?{parameter}")
    assert sentence in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://h/d",
        "postgresql://h:port/d",
        "postgresql://h:05432/d",
        "postgresql://h1:5432,h2:x/d",
        "postgresql://ana:a@b@h/d",
        "postgresql://ana:a[b@h/d",
        "postgresql://ana:a/b@h/d",
        "postgresql://ana:a#b@h/d",
    ],
)
def test_database_url_refuses_malformed_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|percent-encode"):
        parse_database_url(url)


def test_database_url_parameters_are_accepted_by_driver(tmp_path: Path) -> None:
    """The driver gets the same hosts, settings, TLS mode and session attributes."""
    (tmp_path / "pass").write_text("*:*:*:*:s3cret\n")
    (tmp_path / "pass").chmod(0o600)
    url = parse_database_url(
        "postgresql+asyncpg://an%40a@h1:5432,[::1]:5433/d%2Fb?target_session_attrs="
        f"read-write&options=-c%20geqo%3Doff&sslmode=require&connect_timeout=3"
        f"&application_name=site&channel_binding=prefer&passfile={tmp_path}/pass"
    )
    names = inspect.signature(
        asyncpg.connect_utils._parse_connect_dsn_and_args
    ).parameters
    addresses, parameters = asyncpg.connect_utils._parse_connect_dsn_and_args(
        **{**dict.fromkeys(names), "dsn": url.dsn}
    )
    assert addresses == [("h1", 5432), ("::1", 5433)]
    assert (parameters.user, parameters.database) == ("an@a", "d/b")
    assert parameters.password == "s3cret"
    assert parameters.sslmode.name == "require"
    assert parameters.target_session_attrs.value == "read-write"
    assert parameters.server_settings == {"options": "-c geqo=off"}
    assert url.application_name == "site"
    assert url.connect_arguments["timeout"] == 3
    assert url.role == "an@a"


def test_system_certificates_are_verified_with_the_host_name() -> None:
    url = parse_database_url("postgresql://h/d?sslrootcert=system")
    assert url.tls
    assert url.tls.check_hostname


def test_displayed_url_has_no_password() -> None:
    url = "postgresql://ana:hunter2@h/d?password=hunter3&sslmode=require&sslpassword=x"
    displayed = "postgresql://ana:***@h/d?sslmode=require"
    assert parse_database_url(url).displayed == displayed
    assert "hunter" not in repr(parse_database_url(url))
