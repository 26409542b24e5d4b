"""The statements of sessions that log-ins, refreshes and log-outs execute."""

from __future__ import annotations

from dataclasses import fields

from server.domain.credentials.sessions import Session
from server.domain.outbox.entries import EventType
from server.store.change_records import audited
from server.store.pool.statement import Statement

SESSION_FIELDS = [field.name for field in fields(Session)]

# Each change is one statement: one round trip in place of five to eight. The lock
# waits for a change of the account, and then sees its version. `origin` is null at the
# first log-in, which needs no e-mail. `surplus` are the oldest of too many open
# sessions; log-ins at the same time do not see each other, and what they leave open is
# ended by the next one.
OPEN = Statement(
    f"""
    with locked as (
        select id as user_id from users
        where id = :user_id and version = :version and deleted_at is null
        for share
    ), history as (
        select
            bool_or(device = :device and address = :address) as is_known_origin,
            max(last_used_at) as last_used_at
        from sessions where user_id = :user_id and actor_id = 0
    ), opened as (
        insert into sessions ({", ".join(SESSION_FIELDS)})
        select {", ".join(f":{name}" for name in SESSION_FIELDS)} from locked
    ), surplus as (
        update sessions set ended_at = :created_at
        where id in (
            select id from sessions
            where user_id = :user_id and ended_at is null and expires_at > :created_at
                and actor_id = 0
            order by created_at desc, id
            offset :max_others
        ) and exists (select from locked)
        returning id
    ), revoked as (
        insert into revocations (session_id, ended_at)
        select id, :created_at from surplus
    ), enqueued as (
        insert into outbox (kind, user_id, payload, created_at)
        select '{EventType.NEW_DEVICE}', user_id,
            jsonb_build_object(
                'device', cast(:device as text), 'address', cast(:address as text)
            ),
            :created_at
        from locked, history where not is_known_origin
        union all
        select '{EventType.SESSION_OPENED}', user_id, '{{}}', :created_at
        from locked, history
        where coalesce(:created_at - last_used_at >= interval '1 hour', true)
        returning id
    ), {audited("locked", identifies=True)}
    select exists (select from enqueued) as writes_entries,
        array(select id from surplus) as ended
    from locked
    """  # noqa: S608 - no values
)
READ = Statement(
    f"""
    select {", ".join(f"sessions.{name}" for name in SESSION_FIELDS)},
        users.role, users.is_active and users.deleted_at is null as is_active
    from sessions join users on users.id = sessions.user_id
    where sessions.id = :session_id
    """  # noqa: S608 - no values
)
LOCK = Statement(f"{READ.text} for update of sessions")
# Writes nothing if another call was faster: each changes the hash and the nonce.
ROTATE = Statement(
    f"""
    with changed as (
        update sessions set
            token_hash = :token_hash, parent_hash = :parent_hash, nonce = :nonce,
            last_used_at = :last_used_at, expires_at = :expires_at,
            ended_at = :ended_at
        where id = :id and ended_at is null
            and token_hash = :read_hash and nonce = :read_nonce
        returning user_id
    ), revoked as (
        insert into revocations (session_id, ended_at)
        select :id, :ended_at from changed
        where cast(:ended_at as timestamptz) is not null
    ), enqueued as (
        insert into outbox (kind, user_id, created_at)
        select '{EventType.SESSION_OPENED}', user_id, :last_used_at
        from changed where :is_active_again
        returning id
    ), {audited("changed", identifies=True)}
    select exists (select from enqueued) as writes_entries from changed
    """  # noqa: S608 - no values
)
# A user_id of 0 stands for any user.
END = Statement(
    f"""
    with changed as (
        update sessions set ended_at = :now
        where id = :id and ended_at is null and cast(:user_id as bigint) in (0, user_id)
        returning id, user_id
    ), revoked as (
        insert into revocations (session_id, ended_at) select id, :now from changed
    ), {audited("changed", identifies=True)}
    select user_id, exists (select from changed) from sessions
    where id = :id and cast(:user_id as bigint) in (0, user_id)
    """  # noqa: S608 - no values
)
