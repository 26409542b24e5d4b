"""The acknowledgement log: what was answered, compared with database and service.

A write is entered once its response has arrived. Before a write that replaces what
an earlier one wrote, that entry is removed: if no response arrives, either may hold.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.store.connections.connect import Database

ME = user_pb2.GetCurrentUserRequest()


@dataclass
class Ledger:
    """Acknowledged writes that must hold."""

    usernames: dict[int, str] = field(default_factory=dict)
    posts: dict[int, str] = field(default_factory=dict)
    follows: set[tuple[int, int]] = field(default_factory=set)
    open_sessions: dict[str, str] = field(default_factory=dict)  # id to access token
    ended_sessions: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of entries."""
        return (
            len(self.usernames)
            + len(self.posts)
            + len(self.follows)
            + len(self.open_sessions)
            + len(self.ended_sessions)
        )

    async def lost(self, database: Database, channel: grpc.aio.Channel) -> list[str]:
        """Return the entries that do not hold, in the database or for callers."""
        async with database.reading() as connection:
            lost = [
                f"user {key}" for key in await self._changed(connection, self.usernames)
            ]
            lost += [f"post {key}" for key in await _missing(connection, self.posts)]
            lost += [f"follow {pair}" for pair in await self._unfollowed(connection)]
            lost += await self._wrong_sessions(connection)
        users = UserServiceStub(channel)
        for session, token in self.ended_sessions.items():
            if await _is_accepted(users, token):
                lost.append(f"ended session {session} is accepted")
        for session, token in self.open_sessions.items():
            if not await _is_accepted(users, token):
                lost.append(f"open session {session} is refused")
        return lost

    async def _changed(
        self, connection: AsyncConnection, usernames: dict[int, str]
    ) -> list[int]:
        rows = await connection.execute(sa.text("select id, username from users"))
        stored = {row.id: row.username for row in rows}
        return [key for key, name in usernames.items() if stored.get(key) != name]

    async def _unfollowed(self, connection: AsyncConnection) -> set[tuple[int, int]]:
        query = sa.text("select follower_id, followed_id from follows")
        rows = await connection.execute(query)
        return self.follows - {(row.follower_id, row.followed_id) for row in rows}

    async def _wrong_sessions(self, connection: AsyncConnection) -> list[str]:
        query = sa.text("select id, ended_at is not null as ended from sessions")
        rows = await connection.execute(query)
        ended = {row.id.hex: row.ended for row in rows}
        return [
            *(f"log-in {key}" for key in self.open_sessions if ended.get(key) is None),
            *(f"log-out {key}" for key in self.ended_sessions if not ended.get(key)),
        ]


async def _missing(connection: AsyncConnection, posts: Iterable[int]) -> set[int]:
    rows = await connection.execute(sa.text("select id from posts"))
    return set(posts) - {row.id for row in rows}


async def _is_accepted(users: UserServiceStub, token: str) -> bool:
    """Return whether a token is accepted. Any other refusal is an error."""
    metadata = (("authorization", f"Bearer {token}"),)
    try:
        await users.GetCurrentUser(ME, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True
