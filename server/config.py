"""The server's settings: the only place in server/ that reads the environment.

Names are those of the environment; a `.env` file serves too, and any of them may
come as NAME_FILE, the path of a file that holds the value (for secrets).
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from email.utils import parseaddr
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from server.domain.credentials.passwords import PasswordPolicy
from server.mail.smtp import MailServer

SHORTEST_SECRET = 32
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1, "": 1}
_WORTHLESS = {"changeme", "secret", "password", "your-secret-key", "default"}
Network = IPv4Network | IPv6Network


class ConfigurationError(Exception):
    """Every fault of the settings at once, a line each, by name."""


def _duration(value: Any) -> Any:
    """Read `30d`, `12h`, `15m`, `10s` or plain seconds."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([dhms]?)", str(value).strip())
    if match is None:
        raise ValueError("must be a duration such as 30d, 12h, 15m or 10s")
    return float(match[1]) * timedelta(seconds=_UNITS[match[2]])


def _list(value: Any) -> Any:
    """Read a comma-separated list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    known = host == "localhost" or _is_ip(host.strip("[]"))
    if not known or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError("must be ADDRESS:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return value


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _database_url(value: SecretStr) -> SecretStr:
    scheme = value.get_secret_value().partition("://")[0]
    if scheme not in {"postgresql", "postgres", "postgresql+asyncpg"}:
        raise ValueError("must begin with postgresql://")
    return _parsed(value)


def _redis_url(value: SecretStr) -> SecretStr:
    scheme = value.get_secret_value().partition("://")[0]
    if scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return _parsed(value)


def _parsed(value: SecretStr) -> SecretStr:
    try:
        _ = urlsplit(value.get_secret_value()).port
    except ValueError as error:
        raise ValueError("must be a URL, with a number for its port") from error
    return value


def _smtp_url(value: SecretStr) -> SecretStr:
    MailServer.parse(_parsed(value).get_secret_value())
    return value


def _mail_from(value: str) -> str:
    """Let a name and an address pass; RFC 5322 knows stranger ones."""
    address = parseaddr(value)[1]
    if not re.fullmatch(r"[^@\s]+@[a-zA-Z0-9.-]+", address) or not value.isprintable():
        raise ValueError("must be an address, or Academy <no-reply@example.com>")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < SHORTEST_SECRET or text.lower().strip() in _WORTHLESS:
        raise ValueError(
            f"must be at least {SHORTEST_SECRET} random characters: "
            "openssl rand -hex 32"
        )
    if len(set(text)) < 8:
        raise ValueError("must be random: openssl rand -hex 32")
    return value


class RateRule(BaseModel):
    """One rule of RATE_LIMITS, as the policy option writes it."""

    by: list[str] = Field(min_length=1)
    limit: int = Field(gt=0)
    per: Annotated[timedelta, BeforeValidator(_duration)]


def _rate_limits(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return orjson.loads(value or "{}")
        except orjson.JSONDecodeError as error:
            raise ValueError(
                'must be JSON: {"pkg.Service/Method": [{"by": ["address"], '
                '"limit": 1000, "per": "60s"}]}'
            ) from error
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta(0))]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_list)]
Address = Annotated[str, AfterValidator(_address)]
RateLimits = Annotated[
    dict[str, list[RateRule]], NoDecode, BeforeValidator(_rate_limits)
]


class Settings(BaseSettings):
    """What an operator may set; each is documented in the README."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = None
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    secret_key: Annotated[SecretStr, AfterValidator(_secret)] | None = None
    secret_key_previous: Annotated[SecretStr, AfterValidator(_secret)] | None = None
    debug: bool = False
    grpc_listen: Address = "127.0.0.1:50051"
    http_listen: Address = "127.0.0.1:8080"
    state_dir: Path = Path("var")
    public_url: str = ""
    smtp_url: Annotated[SecretStr, AfterValidator(_smtp_url)] | None = None
    mail_from: Annotated[str, AfterValidator(_mail_from)] = (
        "Blatam Academy <no-reply@blatam.academy>"
    )
    cors_origins: Names = ()
    trusted_proxies: Networks = ()
    token_issuer: str = Field("https://blatam.academy", min_length=1)
    token_audience: str = Field("blatam", min_length=1)
    refresh_grace: Duration = timedelta(seconds=10)
    refresh_idle: Duration = timedelta(days=30)
    refresh_absolute: Duration = timedelta(days=90)
    user_retention: Duration = timedelta(days=30)
    audit_retention: Annotated[Duration, Field(ge=timedelta(days=1))] = timedelta(400)
    """How long audit events are kept: 400 days by default, a year and a month, so that
    a yearly review sees the whole year before it. There is no "for ever": events
    hold network addresses, which are personal data."""
    password_policy: PasswordPolicy = PasswordPolicy.COMPOSITION
    rate_limits: RateLimits = Field(default_factory=dict)
    log_level: str = Field("info", pattern="(?i)^(debug|info|warning|error|critical)$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Look into the environment, then into files it names, then into .env."""
        files = _FileSource(settings_cls)
        return init_settings, env_settings, files, dotenv_settings


class _FileSource(EnvSettingsSource):
    """Values that come as NAME_FILE."""

    def get_field_value(
        self, field: FieldInfo, field_name: str
    ) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{field_name.upper()}_FILE")
        try:
            text = Path(path).read_text().strip() if path else None
        except OSError as error:
            raise ConfigurationError(
                f"{field_name.upper()}_FILE cannot be read: {error.strerror}"
            ) from error
        return text, field_name, False


def load(*required: str, **overrides: Any) -> Settings:
    """Read the settings; those named must be there.

    Raises ConfigurationError with every fault, by name.
    """
    faults: dict[str, str] = {}
    settings = None
    try:
        settings = Settings(**overrides)
    except SettingsError as error:
        raise ConfigurationError(str(error.__cause__ or error)) from None
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            name = str(fault["loc"][0])
            faults.setdefault(name, str(fault["msg"]).removeprefix("Value error, "))
    for name in set(required) - _given() - faults.keys():
        faults[name] = "must be set"
    if settings is None or faults:
        lines = [f"{name.upper()}: {faults[name]}" for name in sorted(faults)]
        raise ConfigurationError("\n".join(lines))
    return settings


def _given() -> set[str]:
    """Give the names of what is set anywhere, right or wrong."""
    sources = (
        EnvSettingsSource(Settings),
        _FileSource(Settings),
        DotEnvSettingsSource(Settings, env_file=".env"),
    )
    return {name for source in sources for name, value in source().items() if value}


def require(settings: Settings, *names: str) -> None:
    """Raise ConfigurationError naming each of these settings that is missing."""
    missing = [name for name in names if getattr(settings, name) is None]
    if missing:
        raise ConfigurationError(
            "\n".join(f"{name.upper()}: must be set" for name in missing)
        )


def check_loopback(settings: Settings) -> None:
    """Raise ConfigurationError where DEBUG would be served beyond this machine."""
    for name in ("grpc_listen", "http_listen") if settings.debug else ():
        host = getattr(settings, name).rpartition(":")[0].strip("[]")
        if host != "localhost" and not ip_address(host).is_loopback:
            raise ConfigurationError(
                f"{name.upper()}: with DEBUG on only loopback is served; "
                "set DEBUG=0, or listen on 127.0.0.1"
            )
