"""The server's settings: the only module of server/ that reads the environment.

Each field is an environment variable of the same name in capitals. A `.env` file is
read, too, and NAME_FILE may hold the path of a file with the value, for secrets.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from server.config_addresses import (
    DatabaseUrl,
    ListenAddress,
    MailFrom,
    Networks,
    OptionalListenAddress,
    Origins,
    OtlpEndpoint,
    PublicUrl,
    ReadUrl,
    RedisUrl,
    SmtpUrl,
)
from server.config_identity_providers import IdentityProviderEntries
from server.config_types import (
    MAX_POOL_SIZE,
    AbsolutePath,
    Duration,
    DurationOfDays,
    LogLevel,
    MaxLag,
    OptionalPath,
    PemPath,
    PoolTimeout,
    PositiveDuration,
    RateLimits,
    Ratio,
    Roles,
    SecretKeyText,
    ServiceCertificateNames,
    StatementTimeout,
    WholeNumber,
)
from server.domain.credentials.passwords import PasswordPolicy
from server.observability.logging import LogFormat


class ConfigurationError(Exception):
    """What is wrong with the settings, one line per setting, by its name."""


class Pooler(StrEnum):
    """What stands between this service and Postgres."""

    NONE = "none"
    TRANSACTION = "transaction"


class Settings(BaseSettings):
    """Everything an operator can set; README describes each setting."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: DatabaseUrl | None = None
    database_pooler: Pooler = Pooler.NONE
    database_write_epochs: bool = False
    database_pool_size: WholeNumber = Field(10, ge=1, le=MAX_POOL_SIZE)
    database_read_url: ReadUrl | None = None
    database_read_max_lag: MaxLag = timedelta(seconds=5)
    statement_timeout: StatementTimeout = timedelta(seconds=10)
    database_pool_timeout: PoolTimeout = timedelta(milliseconds=500)
    redis_url: RedisUrl | None = None
    secret_key: SecretKeyText | None = None
    secret_key_previous: SecretKeyText | None = None
    debug: bool = False
    grpc_listen: ListenAddress = "127.0.0.1:50051"
    http_listen: ListenAddress = "127.0.0.1:8080"
    metrics_listen: OptionalListenAddress = ""
    http_keep_alive: PositiveDuration = timedelta(seconds=75)
    workers: WholeNumber = Field(1, ge=1, le=64)  # processes
    lame_duck: Duration = timedelta(seconds=2)
    grpc_max_connection_age: Duration = timedelta(minutes=30)
    tls_cert: PemPath = None
    tls_key: PemPath = None
    client_ca: PemPath = None
    service_certificates: ServiceCertificateNames = Field(default_factory=dict)
    server_ca: PemPath = None
    client_cert: PemPath = None
    client_key: PemPath = None
    allow_plaintext: bool = False
    state_dir: Path = Path("var")
    public_url: PublicUrl = ""
    smtp_url: SmtpUrl | None = None
    mail_from: MailFrom = "Blatam Academy <no-reply@blatam.academy>"
    cors_origins: Origins = ()
    trusted_proxies: Networks = ()
    token_issuer: str = Field("https://blatam.academy", min_length=1)
    token_audience: str = Field("blatam", min_length=1)
    refresh_grace: Duration = timedelta(seconds=10)
    refresh_idle: PositiveDuration = timedelta(days=30)
    refresh_absolute: PositiveDuration = timedelta(days=90)
    max_sessions: WholeNumber = Field(50, ge=1, le=1_000)  # open ones of a user
    mfa_required_roles: Roles = ()  # whose users need a second factor
    oidc_providers: IdentityProviderEntries = ()  # of a JSON file at this path
    user_retention: Duration = timedelta(days=30)
    audit_retention: DurationOfDays = timedelta(days=400)
    """How long audit events are kept.

    The default, a year and a month, lets a yearly review see the whole previous year.
    No value keeps events without a limit, because they contain network addresses,
    which are personal data.
    """
    erasure_log: AbsolutePath = None
    pg_bin: OptionalPath = None
    password_policy: PasswordPolicy = PasswordPolicy.COMPOSITION
    imported_hash_max_cost: WholeNumber = Field(
        12, ge=1
    )  # times the cost of own hashes
    rate_limits: RateLimits = Field(default_factory=dict)
    otel_exporter_otlp_endpoint: OtlpEndpoint = ""
    otel_traces_sampler_arg: Ratio = 1.0
    log_level: LogLevel = "info"
    log_format: LogFormat | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Prefer the environment, then the files it names, then .env."""
        files = _FileSource(settings_cls)
        return init_settings, env_settings, files, dotenv_settings


class _FileSource(EnvSettingsSource):
    """Reads a value from the file that NAME_FILE names."""

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
    """Read the settings; those named as required must be set.

    Raises ConfigurationError with every fault at once, by the setting's name.
    """
    faults: dict[str, str] = {}
    settings = None
    try:
        settings = Settings(**overrides)
    except SettingsError as error:
        raise ConfigurationError(str(error.__cause__ or error)) from None
    except ValidationError as error:
        for details in error.errors(include_input=False, include_url=False):
            faults.setdefault(str(details["loc"][0]), _sentence(details))
    for name in set(required) - _present_names() - faults.keys():
        faults[name] = "must be set"
    if settings is None or faults:
        lines = [f"{name.upper()}: {faults[name]}" for name in sorted(faults)]
        raise ConfigurationError("\n".join(lines))
    return settings


def with_local_defaults(settings: Settings) -> Settings:
    """Return the settings with the defaults of `academy up` for what is not set."""
    defaults = {"debug": True, "lame_duck": timedelta(0)}
    missing = defaults.keys() - settings.model_fields_set
    return settings.model_copy(update={name: defaults[name] for name in missing})


def _sentence(details: ErrorDetails) -> str:
    """Return what a value must be, with its place inside the setting."""
    if details["type"] == "bool_parsing":
        return "must be 1 or 0"
    if details["type"] == "extra_forbidden":
        return f"{details['loc'][-1]} is not a known field"
    if details["type"] == "missing":
        return f"{details['loc'][-1]} is required"
    message = str(details["msg"]).removeprefix("Value error, ")
    message = re.sub("^(Input|List|String|Tuple) should", "must", message)
    place = ".".join(str(part) for part in details["loc"][1:] if part != "function")
    return f"{place}: {message}" if place else message


def _present_names() -> set[str]:
    """Return the names of all settings that have a value, valid or not."""
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


def text_of(secret: SecretStr | None) -> str:
    """Return the text of a secret setting, "" if it is not set."""
    return secret.get_secret_value() if secret else ""


def check_loopback(settings: Settings) -> None:
    """Raise ConfigurationError if DEBUG would be reachable from other machines."""
    for name in ("grpc_listen", "http_listen") if settings.debug else ():
        if not is_loopback(getattr(settings, name)):
            raise ConfigurationError(
                f"{name.upper()}: with DEBUG on, only a loopback address is allowed: "
                "set DEBUG=0, or listen on 127.0.0.1"
            )


def is_loopback(address: str) -> bool:
    """Return whether an address cannot be reached from, or is not, another machine.

    It is HOST:PORT or unix:PATH.
    """
    if address.startswith("unix:/"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a host name
        return False
