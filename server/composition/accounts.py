"""Accounts: users, batches of users, exports, personal data, the stream of changes."""

from __future__ import annotations

from server.composition.feature import Drain, DrainStage, Feature
from server.composition.resources import Resources, page_tokens
from server.composition.stores import Stores
from server.config import ConfigurationError, Settings
from server.domain.accounts.personal_data import PersonalData
from server.domain.accounts.user_batches import UserBatches
from server.domain.accounts.user_export import UserExport
from server.domain.accounts.user_watch import UserWatch
from server.domain.accounts.users import Users
from server.domain.auth.authentication import Authentication
from server.domain.clock import Clock
from server.rpc.accounts.personal_data import PersonalDataServicer
from server.rpc.accounts.user_batches import UserBatchServicer
from server.rpc.accounts.user_export import UserExportServicer
from server.rpc.accounts.user_watch import UserWatchServicer
from server.rpc.accounts.users import UserServicer
from server.store.accounts.erasure import Erasures
from server.store.accounts.erasure_log import (
    DamagedErasureLog,
    ErasureLog,
    read_erasures,
)
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.accounts.user_batches import PostgresUserBatches
from server.store.accounts.users import PostgresUsers
from server.store.retention import ENTRY_RETENTION, PostgresRetention
from server.workers.poller import Poller
from server.workers.retention import Retention

SERVICE = "blatam.user.v1.UserService"


def accounts_feature(
    resources: Resources, stores: Stores, authentication: Authentication
) -> Feature:
    """Build the feature."""
    changes, cache = stores.user_changes, stores.users.cache
    database, settings = resources.database, resources.settings
    erasures = Erasures(
        database, resources.feed, log=open_erasure_log(settings, resources.clock)
    )
    personal_data = PostgresPersonalData(
        database, resources.feed, cache.remove, erasures
    )
    watch = UserWatch(changes, ENTRY_RETENTION, resources.clock)
    retention = Retention(
        PostgresRetention(database, settings.audit_retention),
        erasures,
        settings.user_retention,
        resources.clock,
    )

    async def close_streams() -> None:
        changes.buffer.close()

    return Feature(
        servicers={
            SERVICE: (
                UserServicer(users(resources, stores.users)),
                UserBatchServicer(user_batches(resources)),
                UserExportServicer(UserExport(stores.users)),
                UserWatchServicer(watch),
                PersonalDataServicer(PersonalData(personal_data, authentication)),
            )
        },
        tasks=(
            Poller("retention", retention.sweep, retention.interval, erasures.wake),
        ),
        drains=(Drain(DrainStage.STREAMS, close_streams),),
    )


def open_erasure_log(settings: Settings, clock: Clock) -> ErasureLog | None:
    """Return the log of ERASURE_LOG, None if it is not set.

    Raises ConfigurationError if it cannot be written, or is damaged.
    """
    if settings.erasure_log is None:
        return None
    log = ErasureLog(settings.erasure_log, clock)
    try:
        log.create()
        read_erasures(settings.erasure_log)
    except DamagedErasureLog as error:
        raise ConfigurationError(f"ERASURE_LOG: {error}") from error
    except OSError as error:
        raise ConfigurationError(
            f"ERASURE_LOG: {settings.erasure_log} cannot be written: {error.strerror}"
        ) from error
    return log


def users(resources: Resources, store: PostgresUsers | None = None) -> Users:
    """Build the rules of accounts."""
    return Users(
        store=store or PostgresUsers(resources.database, resources.feed),
        hasher=resources.hasher,
        tokens=page_tokens(resources),
        policy=resources.settings.password_policy,
        retention=resources.settings.user_retention,
        clock=resources.clock,
    )


def user_batches(resources: Resources) -> UserBatches:
    """Build the rules of creating many accounts in one call."""
    return UserBatches(
        store=PostgresUserBatches(resources.database),
        hasher=resources.hasher,
        policy=resources.settings.password_policy,
        imported_hash_max_cost=resources.settings.imported_hash_max_cost,
        clock=resources.clock,
    )
