"""The types of settings: how each value is parsed and what is rejected.

Numbers are ASCII digits without leading zeros: Python's own parsers also take other
scripts' digits, underscores, exponents and `nan`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
)
from pydantic_settings import NoDecode

from server.config_addresses import HOST_NAME
from server.domain.accounts.users import Role

MIN_SECRET_LENGTH = 32
MIN_DISTINCT_CHARACTERS = 8
MAX_DURATION = timedelta(days=36_500)
MAX_LIMIT = 1_000_000_000
MAX_POOL_SIZE = 1_000
MIN_STATEMENT_TIMEOUT = timedelta(milliseconds=100)
MAX_STATEMENT_TIMEOUT = timedelta(hours=1)
MIN_MAX_LAG = timedelta(seconds=3)  # the lag is measured once a second
MAX_MAX_LAG = timedelta(hours=1)
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(r"((?:0|[1-9][0-9]{0,9})(?:\.[0-9]{1,6})?)([dhms])")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_RATIO = re.compile(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]+")


def _parse_duration(value: Any) -> Any:
    """Parse `30d`, `12h`, `15m` or `10s`."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("must be a duration such as 30d, 12h, 15m or 10s")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"must be at most {MAX_DURATION.days}d")
    return timedelta(seconds=seconds)


def _check_positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("must be longer than 0s")
    return value


def _check_one_day(value: timedelta) -> timedelta:
    if value < timedelta(days=1):
        raise ValueError("must be at least 1d")
    return value


def _check_statement_timeout(value: timedelta) -> timedelta:
    if not MIN_STATEMENT_TIMEOUT <= value <= MAX_STATEMENT_TIMEOUT:
        raise ValueError("must be from 0.1s to 1h")
    return value


def _check_max_lag(value: timedelta) -> timedelta:
    if not MIN_MAX_LAG <= value <= MAX_MAX_LAG:
        raise ValueError("must be from 3s to 1h")
    return value


def _check_pool_timeout(value: timedelta, info: ValidationInfo) -> timedelta:
    """Refuse a longer wait for a connection than a statement may take to free one."""
    limit = info.data.get("statement_timeout")
    if limit is not None and value > limit:
        raise ValueError("must be at most STATEMENT_TIMEOUT")
    return value


def _parse_whole_number(value: Any) -> Any:
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError("must be a whole number, such as 12")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _parse_ratio(value: Any) -> Any:
    if isinstance(value, str) and not _RATIO.fullmatch(value.strip()):
        raise ValueError("must be a number from 0 to 1, such as 0.05")
    return value


def _check_secret_key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < MIN_SECRET_LENGTH:
        raise ValueError(
            f"must have at least {MIN_SECRET_LENGTH} random characters: "
            "generate it with `openssl rand -hex 32`"
        )
    if len(set(text)) < MIN_DISTINCT_CHARACTERS:
        raise ValueError(
            f"must have at least {MIN_DISTINCT_CHARACTERS} distinct characters: "
            "generate it with `openssl rand -hex 32`"
        )
    return value


def _json_parser(example: str) -> Callable[[Any], Any]:
    """Return a parser of JSON objects that refuses repeated names."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}", object_pairs_hook=_unique_names)
        except json.JSONDecodeError as error:
            raise ValueError(f"must be JSON such as {example}") from error

    return parse


def _unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"must not contain {repeated} twice")
    return values


def _parse_roles(value: Any) -> Any:
    """Parse a comma-separated list of roles, such as `admin,teacher`."""
    if not isinstance(value, str):
        return value
    names = [name.strip().upper() for name in value.split(",") if name.strip()]
    known = Role.__members__
    for name in names:
        if name not in known:
            listed = ", ".join(role.lower() for role in known)
            raise ValueError(f"{name.lower()!r} must be one of {listed}")
    return tuple(known[name] for name in dict.fromkeys(names))


def _parse_path(value: Any) -> Any:
    """Return None for an empty text; refuse what NAME_FILE reads instead of NAME."""
    if isinstance(value, str) and "-----BEGIN" in value:
        raise ValueError("must be the path of a PEM file, not the content of the file")
    return value or None


def _check_service_certificates(values: dict[str, str]) -> dict[str, str]:
    """Normalize DNS names to lower case; URIs are compared exactly."""
    services: dict[str, str] = {}
    for name, service in values.items():
        is_uri = _URI.fullmatch(name)
        if not (is_uri or HOST_NAME.fullmatch(name)):
            raise ValueError(
                f"{name!r} must be a DNS name or a URI of a client certificate, such "
                "as billing.internal or spiffe://academy/billing"
            )
        if not service:
            raise ValueError(
                f"{name} must have a value: the name of a service key, such as billing"
            )
        name = name if is_uri else name.lower()
        if name in services:
            raise ValueError(f"must not contain {name} twice")
        services[name] = service
    return services


Duration = Annotated[timedelta, BeforeValidator(_parse_duration)]
PositiveDuration = Annotated[Duration, AfterValidator(_check_positive)]
StatementTimeout = Annotated[Duration, AfterValidator(_check_statement_timeout)]
MaxLag = Annotated[Duration, AfterValidator(_check_max_lag)]
PoolTimeout = Annotated[PositiveDuration, AfterValidator(_check_pool_timeout)]
DurationOfDays = Annotated[Duration, AfterValidator(_check_one_day)]


def _check_absolute(value: Path | None) -> Path | None:
    if value and not value.is_absolute():
        raise ValueError("must be an absolute path")
    return value


class RateLimitSetting(BaseModel):
    """One rule of RATE_LIMITS, with the fields of the policy option."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    by: list[str] = Field(min_length=1)
    limit: int = Field(gt=0, le=MAX_LIMIT, strict=True)
    per: PositiveDuration


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
]
WholeNumber = Annotated[int, BeforeValidator(_parse_whole_number)]
Ratio = Annotated[float, BeforeValidator(_parse_ratio)]
Roles = Annotated[tuple[Role, ...], NoDecode, BeforeValidator(_parse_roles)]
SecretKeyText = Annotated[SecretStr, AfterValidator(_check_secret_key)]
RateLimits = Annotated[
    dict[str, list[RateLimitSetting]],
    NoDecode,
    BeforeValidator(
        _json_parser(
            '{"pkg.Service/Method": [{"by": ["address"], "limit": 1000, "per": "60s"}]}'
        )
    ),
]
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
AbsolutePath = Annotated[OptionalPath, AfterValidator(_check_absolute)]
PemPath = Annotated[Path | None, BeforeValidator(_parse_path)]
ServiceCertificateNames = Annotated[
    dict[str, str],
    NoDecode,
    BeforeValidator(_json_parser('{"billing.internal": "name of a service key"}')),
    AfterValidator(_check_service_certificates),
]
