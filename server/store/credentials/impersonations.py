"""Sessions of admins who act as users, in Postgres."""

from __future__ import annotations

from uuid import UUID

from server.domain.accounts.users import Role
from server.domain.auth.impersonation import AdminLogIn
from server.domain.credentials.sessions import Session
from server.domain.outbox.entries import EventType
from server.store.change_records import audit_rows, audited, mark_audited
from server.store.connections.connect import Database
from server.store.pool.statement import Statement

# The locks are taken in the order of ids, as everywhere. What disables the user or
# takes the admin's role away waits for them, and then ends this session, too. LogoutAll
# takes no lock: at the same moment, it may leave this session open until it expires.
_OPEN = Statement(
    f"""
    with locked as (
        select id, role, version from users
        where id = any(array[cast(:user_id as bigint), cast(:actor_id as bigint)])
            and is_active and deleted_at is null
        order by id for share
    ), admin as (
        select amr, coalesce(authenticated_at, created_at) as auth_time
        from sessions join locked on locked.id = sessions.user_id
        where sessions.id = :admin_session_id and sessions.user_id = :actor_id
            and ended_at is null and expires_at > :now and role = {Role.ADMIN:d}
    ), opened as (
        insert into sessions (
            id, user_id, actor_id, token_hash, parent_hash, nonce, address, device,
            created_at, last_used_at, expires_at, authenticated_at, amr
        )
        select :id, locked.id, :actor_id, :token_hash, '', '', '', '', :now, :now,
            :expires_at, admin.auth_time, admin.amr
        from locked, admin
        where locked.id = :user_id and version = :version and role <> {Role.ADMIN:d}
        returning user_id, amr, authenticated_at
    ), enqueued as (
        insert into outbox (kind, user_id, created_at)
        select '{EventType.IMPERSONATED}', user_id, :now from opened
    ), {audited("opened")}
    select amr, authenticated_at from opened
    """  # noqa: S608 - no values
)


class PostgresImpersonations:
    """Stores the sessions of admins who act as users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, session: Session, version: int, admin_session_id: UUID
    ) -> AdminLogIn | None:
        """Write a session, with how its admin logged in, and inform the user.

        Returns None, and changes nothing, if the user has changed since this version,
        or if the session of the admin has ended.
        """
        rows = await self._database.run(
            _OPEN,
            id=session.id,
            user_id=session.user_id,
            actor_id=session.actor_id,
            token_hash=session.token_hash,
            now=session.created_at,
            expires_at=session.expires_at,
            version=version,
            admin_session_id=admin_session_id,
            audit=audit_rows(session.user_id),
        )
        if not rows:
            return None
        mark_audited()
        return AdminLogIn(tuple(rows[0]["amr"]), rows[0]["authenticated_at"])
