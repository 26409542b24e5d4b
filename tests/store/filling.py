"""Rows of a busy service, beside those of `academy bench-seed`, for query plans."""

import sqlalchemy as sa

from server.domain.clock import system_clock
from server.store.connections.connect import Database
from server.store.seeding.members import MemberRows, SeedSizes
from server.store.seeding.seed import seed

# More than lists count, so that counting is bounded by its limit.
MEMBERS = 20_000
ADMINS = 3
_SIZES = SeedSizes(MEMBERS, sessions_per_user=2, posts_per_user=1, follows_per_user=3)
_ROWS = (
    f"update users set role = 3 where id <= {ADMINS}",
    "update users set deleted_at = now() - interval '1 hour' where id % 500 = 0",
    "update posts set state = 3, deleted_at = now() where id % 500 = 0",
    "insert into audit_events"
    " (at, event, actor, user_id, address, outcome, request_id)"
    " select now() - interval '395 days' * (1 - n / 60000.0),"
    " case when n % 2000 = 0 then 'EraseUser' else 'Login' end,"
    " 'user:' || n % 20000, n % 20000, '198.18.0.1', 'OK', 'r'"
    " from generate_series(1, 60000) n",
    "insert into outbox (kind, user_id, address, created_at, state, delivered_at)"
    " select (array['user.created', 'session.opened', 'mail.welcome'])[1 + n % 3],"
    " n % 20000, case n % 100 when 0 then 'x' || n end,"
    " now() - interval '6 days' * (1 - n / 60000.0),"
    " case when n % 10000 = 0 then 2 else 1 end,"
    " now() - interval '6 days' * (1 - n / 60000.0) from generate_series(1, 60000) n",
    "insert into outbox (kind, user_id, created_at)"
    " select 'session.opened', n, now() from generate_series(1, 20) n",
    "insert into request_answers"
    " (caller, method, request_id, fingerprint, answer, answered_at, about)"
    " select 'user:' || n, 'CreatePost', n::text, '', '', now(), array[n]"
    " from generate_series(1, 20000) n",
    "insert into mailed_tokens"
    " (digest, purpose, user_id, address, outbox_id, created_at, expires_at)"
    " select sha256(id::text::bytea), 'email_verification', id, email, id, now(),"
    " now() + interval '1 day' from users",
    "insert into notifications (user_id, actor_id, created_at, told_at)"
    " select followed_id, follower_id, now() - interval '80 days' * random(),"
    " case when follower_id % 1000 > 0 then now() end from follows",
    "insert into revocations (session_id, ended_at)"
    " select id, now() from sessions limit 20000",
    "insert into user_settings (user_id, followed_posts, new_followers, digest, theme,"
    " visibility, updated_at, version)"
    " select id, true, true, id % 2 = 0, 1, 1, now(), 1 from users",
    "insert into user_profiles (user_id, display_name, bio, avatar_url, locale,"
    " time_zone, created_at, updated_at)"
    " select id, username, '', '', 'en', 'UTC', now(), now() from users",
    "insert into factors (user_id, type, name, secret, created_at, confirmed_at)"
    " select id, 1, 'phone', 'secret', now() - interval '2 hours',"
    " case when id % 100 > 0 then now() end from users",
    "insert into recovery_codes (user_id, code_hash)"
    " select id, sha256(id::text::bytea) from users",
    "insert into identities (user_id, issuer, subject, provider, created_at)"
    " select id, 'https://id.example', id::text, 'example', now() from users",
    "insert into challenges"
    " (id, kind, user_id, secret_hash, version, address, device, created_at,"
    " expires_at)"
    " select gen_random_uuid(), 1, id, '', 1, '198.18.0.0/24', 'device', now(),"
    " now() + interval '5 minutes' * (id % 100 - 1) from users",
)


async def fill(database: Database) -> None:
    """Fill every large table of an empty database; ids of members begin at 1."""
    now = system_clock()
    await seed(database, MemberRows(_SIZES, "hash", now), MEMBERS, now)
    async with database.alone(transaction=True) as connection:
        for statement in _ROWS:
            await connection.execute(sa.text(statement))
    async with database.alone() as connection:
        await connection.execute(sa.text("vacuum analyze"))
