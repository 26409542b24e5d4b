"""What `academy doctor` looks at: each check says what it found and what to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
from pydantic import SecretStr
from redis.exceptions import RedisError

from server.config import Settings
from server.domain.clock import system_clock
from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerUnavailable
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from server.store import migrate
from server.store.connect import Database, asyncpg_url, redis_client


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result; `advice` is empty when all is well."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def shown_settings(settings: Settings) -> dict[str, str]:
    """Give every setting by its name in the environment, without its secrets."""
    return {name.upper(): _shown(value) for name, value in settings}


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return _without_password(text) if "://" in text else "(set)"
    return "(not set)" if value is None else str(value)


def _without_password(url: str) -> str:
    """Give where a URL leads; its query may hold secrets, and only hosts are shown."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(set)"
    shown = {k: v for k, v in parsed.query.items() if k in {"host", "port", "sslmode"}}
    return parsed.set(query=shown).render_as_string(hide_password=True)


async def findings(settings: Settings) -> list[Finding]:
    """Run every check."""
    return [
        _secret(settings),
        await _postgres(settings),
        await _schema(settings),
        await _redis(settings),
        await _mail(settings),
        _port("GRPC_LISTEN", settings.grpc_listen),
        _port("HTTP_LISTEN", settings.http_listen),
    ]


def _secret(settings: Settings) -> Finding:
    if settings.secret_key:
        return Finding("secret key", True, "set")
    advice = "set SECRET_KEY to the output of: openssl rand -hex 32"
    return Finding("secret key", False, "not set", advice)


def _url(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


async def _postgres(settings: Settings) -> Finding:
    url = _url(settings.database_url)
    if not url:
        advice = "set DATABASE_URL, or start `academy up`, which brings a Postgres"
        return Finding("postgres", False, "no address", advice)
    database = Database(url)
    shown = _without_password(str(asyncpg_url(url).render_as_string(False)))
    try:
        await asyncio.wait_for(database.ping(), 5)
    except (StoreUnavailable, sa.exc.SQLAlchemyError, OSError, ValueError) as error:
        advice = "start it, or correct DATABASE_URL"
        cause = type(error.__cause__ or error).__name__
        return Finding("postgres", False, f"{shown}: no answer ({cause})", advice)
    finally:
        await database.close()
    return Finding("postgres", True, f"{shown}: answers")


async def _schema(settings: Settings) -> Finding:
    try:
        present = await migrate.current(_url(settings.database_url))
    except (StoreUnavailable, sa.exc.SQLAlchemyError, OSError, ValueError):
        return Finding("schema", False, "unknown", "see postgres")
    wanted = migrate.newest()
    if present == wanted:
        return Finding("schema", True, present)
    advice = "run: academy migrate"
    return Finding("schema", False, f"{present or 'none'}, needs {wanted}", advice)


async def _redis(settings: Settings) -> Finding:
    url = _url(settings.redis_url)
    if not url:
        advice = "set REDIS_URL, or start `academy up`, which brings a Valkey"
        return Finding("redis", False, "no address", advice)
    client = redis_client(url)
    ping: Callable[[], Awaitable[object]] = client.ping
    try:
        await ping()
    except (RedisError, OSError) as error:
        found = f"{_without_password(url)}: no answer ({type(error).__name__})"
        advice = "start it; until then limits hold per process"
        return Finding("redis", False, found, advice)
    finally:
        await client.aclose()
    return Finding("redis", True, f"{_without_password(url)}: answers")


async def _mail(settings: Settings) -> Finding:
    url = _url(settings.smtp_url)
    if not url:
        folder = settings.state_dir / "mail"
        return Finding("mail", True, f"no SMTP_URL: files in {folder}, for nobody else")
    shown = _without_password(url)
    stationery = MessageBuilder(settings.mail_from, settings.public_url, system_clock)
    post = SmtpMailer(MailServer.parse(url), stationery)
    try:
        await post.ping()
    except MailerUnavailable as error:
        advice = "start it, or correct SMTP_URL; until then mails wait"
        return Finding("mail", False, f"{shown}: no answer ({error})", advice)
    finally:
        await post.close()
    if not settings.public_url:
        advice = "set PUBLIC_URL to the origin that browsers see: links lead there"
        return Finding("mail", False, "no PUBLIC_URL", advice)
    return Finding("mail", True, f"{shown}: answers")


def _port(setting: str, address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 1).close()
    except OSError:
        advice = "start it: academy up, or academy serve"
        return Finding(setting, False, f"{address}: nothing listens there", advice)
    return Finding(setting, True, f"{address}: something listens there")
