"""The checks of `academy doctor`: each returns a result and advice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import SecretStr

from server.cli.database import open_database
from server.cli.monitoring.file_checks import check_files
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.listener_checks import check_listeners
from server.cli.monitoring.process_checks import check_process
from server.cli.monitoring.provider_checks import check_identity_providers
from server.cli.monitoring.redis_checks import check_redis
from server.cli.monitoring.replica_check import check_replica
from server.composition.tls.reload import ReloadedCredentials
from server.composition.tls.settings import listener_credentials, upstream_credentials
from server.config import ConfigurationError, Settings, text_of
from server.domain.clock import system_clock
from server.domain.errors import StoreUnavailable
from server.domain.outbox.emails import MailerUnavailable
from server.mail.message import MessageBuilder
from server.mail.smtp import MailServer, SmtpMailer
from server.store import migrate
from server.store.backups.previous_schema import RestoreUnfinished
from server.store.connections.connect import Database
from server.store.connections.database_url import SCHEMES, parse_database_url
from server.store.connections.faults import (
    DATABASE_ERRORS,
    READ_ONLY_ADVICE,
    describe_fault,
)
from server.store.credentials.service_keys import PostgresServiceKeys

POSTGRES_TIMEOUT_SECONDS = 5.0
NO_CONNECTION = "no connection"
_DATABASE_ERRORS = (StoreUnavailable, *DATABASE_ERRORS, OSError, TimeoutError)


def displayed_settings(settings: Settings) -> dict[str, str]:
    """Return every setting by its name in the environment, without secrets."""
    return {name.upper(): _displayed(value) for name, value in settings}


def _displayed(value: object) -> str:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return _displayed_url(text) if "://" in text else "(set)"
    return "(not set)" if value is None else str(value)


def _displayed_url(url: str) -> str:
    """Return a URL without its password and query, which may hold secrets."""
    parts = urlsplit(url)
    if parts.scheme in SCHEMES:
        return parse_database_url(url).displayed
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    netloc = f"{user}{':***' if colon else ''}{at}{hosts}"
    return f"{parts.scheme}://{netloc}{parts.path}"


async def run_checks(settings: Settings) -> list[Finding]:
    """Run every check, in the order in which an operator should fix them."""
    redis_url = text_of(settings.redis_url)
    return [
        _check_secret_key(settings),
        *await _check_database(settings),
        await check_redis(redis_url, _displayed_url(redis_url)),
        await _check_mail(settings),
        *await check_identity_providers(settings),
        *await check_listeners(settings),
        *await check_process(settings.metrics_listen),
        *check_files(settings),
        *_check_certificates(settings, system_clock()),
    ]


def _check_secret_key(settings: Settings) -> Finding:
    if settings.secret_key:
        return Finding("secret key", True, "set")
    advice = "set SECRET_KEY to the output of: openssl rand -hex 32"
    return Finding("secret key", False, "not set", advice)


async def _check_database(settings: Settings) -> list[Finding]:
    url = text_of(settings.database_url)
    if not url:
        advice = "set DATABASE_URL, or run academy up, which starts a Postgres server"
        return [Finding("postgres", False, "DATABASE_URL is not set", advice)]
    database = open_database(settings)
    try:
        finding = await _check_postgres(database, _displayed_url(url))
        if finding.result.endswith(NO_CONNECTION):
            return [finding]
        return [
            finding,
            *await check_replica(settings, database),
            await _check_schema(database),
            *await _check_service_certificates(settings, database),
        ]
    finally:
        await database.close()


async def _check_postgres(database: Database, url: str) -> Finding:
    try:
        async with (
            asyncio.timeout(POSTGRES_TIMEOUT_SECONDS),
            database.reading() as connection,
        ):
            setting = await connection.execute(sa.text("show transaction_read_only"))
    except _DATABASE_ERRORS as error:
        advice = describe_fault(error.__cause__ or error, database.role)
        return Finding("postgres", False, f"{url}: {NO_CONNECTION}", advice)
    if setting.scalar_one() == "on":
        return Finding("postgres", False, f"{url}: is read-only", READ_ONLY_ADVICE)
    return Finding("postgres", True, f"{url}: responds")


async def _check_schema(database: Database) -> Finding:
    try:
        revision = await migrate.current(database)
        is_behind = await migrate.is_behind(database)
    except _DATABASE_ERRORS as error:
        advice = describe_fault(error.__cause__ or error, database.role)
        return Finding("schema", False, "cannot be read", advice)
    except RestoreUnfinished as error:
        return Finding("schema", False, "is not restored yet", str(error))
    required, newest = migrate.required(), migrate.newest()
    if is_behind:
        result = f"revision {revision or 'none'}; this release needs {required}"
        return Finding("schema", False, result, "run: academy migrate")
    note = "" if revision == newest else f", newer than this release ({newest})"
    if revision == required != newest:
        note = f"; after the rollout: academy migrate --after-rollout ({newest})"
    return Finding("schema", True, f"revision {revision}{note}")


async def _check_service_certificates(
    settings: Settings, database: Database
) -> list[Finding]:
    """Check that the service keys of SERVICE_CERTIFICATES exist."""
    if not settings.service_certificates:
        return []
    keys = PostgresServiceKeys(database, system_clock)
    try:
        names = {key.name for key in await keys.all() if key.is_valid(system_clock())}
    except _DATABASE_ERRORS:
        return []  # reported above
    missing = sorted({*settings.service_certificates.values()} - names)
    if not missing:
        result = "every service key that SERVICE_CERTIFICATES names is valid"
        return [Finding("certificates", True, result)]
    result = f"no valid service key is named {', '.join(missing)}"
    advice = (
        "create a service key with each of these names, or correct "
        "SERVICE_CERTIFICATES; until then, calls with these certificates are "
        "refused"
    )
    return [Finding("certificates", False, result, advice)]


async def _check_mail(settings: Settings) -> Finding:
    url = text_of(settings.smtp_url)
    if not url:
        folder = settings.state_dir / "mail"
        result = (
            f"SMTP_URL is not set: e-mails are written to {folder} and are not sent"
        )
        return Finding("mail", True, result)
    builder = MessageBuilder(settings.mail_from, settings.public_url, system_clock)
    mailer = SmtpMailer(MailServer.parse(url), builder)
    try:
        await mailer.ping()
    except MailerUnavailable as error:
        result = f"{_displayed_url(url)}: connection or log-in failed ({error})"
        advice = (
            "start the mail server, or correct SMTP_URL; until then, e-mails stay in "
            "the outbox"
        )
        return Finding("mail", False, result, advice)
    finally:
        await mailer.close()
    if not settings.public_url:
        advice = (
            "set PUBLIC_URL to the origin that browsers use, such as "
            "https://academy.example: links in e-mails need it"
        )
        return Finding("mail", False, "PUBLIC_URL is not set", advice)
    return Finding("mail", True, f"{_displayed_url(url)}: responds")


def _check_certificates(settings: Settings, now: datetime) -> list[Finding]:
    """Check the certificates of the listeners and of `academy edge`, if it has any."""
    findings = [_check_certificate("tls", lambda: listener_credentials(settings), now)]
    if settings.server_ca or settings.client_cert or settings.client_key:
        read = partial(upstream_credentials, settings, "")
        findings.append(_check_certificate("edge tls", read, now))
    return findings


def _check_certificate(
    check: str, read: Callable[[], ReloadedCredentials | None], now: datetime
) -> Finding:
    try:
        credentials = read()
    except ConfigurationError as error:
        fault, _, advice = "; ".join(str(error).splitlines()).partition(": ")
        return Finding(check, False, f"{fault} is invalid", advice)
    if credentials is None:
        return Finding(check, True, "TLS_CERT is not set: plaintext")
    current = credentials.current()
    if current.expires_at is None or current.renew_by is None:
        return Finding(check, True, "no certificate is set")
    days = (current.expires_at - now).days
    result = f"valid until {current.expires_at:%Y-%m-%d}, {days} days left"
    if now < current.renew_by:
        return Finding(check, True, result)
    return Finding(check, False, result, "renew the certificate; no restart is needed")
