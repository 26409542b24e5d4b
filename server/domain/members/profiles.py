"""Profiles: what members publish about themselves, and who may read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag_of
from server.domain.errors import (
    AccessDenied,
    InvalidFields,
    ProfileNotFound,
    Violation,
)
from server.domain.idempotency import IdempotencyRecord


@dataclass(frozen=True, slots=True)
class Profile:
    """A member's profile; "" for a field that is not filled in."""

    user_id: int
    display_name: str
    bio: str
    avatar_url: str
    locale: str
    time_zone: str
    created_at: datetime
    updated_at: datetime
    version: int = 1

    @property
    def etag(self) -> str:
        """The etag of this version."""
        return etag_of(self.version)


class ProfileStore(Protocol):
    """Stores profiles. Those of deleted accounts are not found."""

    async def add(
        self, profile: Profile, idempotency: IdempotencyRecord[Profile] | None = None
    ) -> Profile:
        """Write a profile. Raises ProfileExists, UserNotFound, ResponseExists."""

    async def by_user(self, user_id: int, *, include_private: bool) -> Profile | None:
        """Return an account's profile, or None; a private one if `include_private`."""

    async def edit(
        self,
        user_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Change a profile. Raises ProfileNotFound, EtagMismatch, ResponseExists."""


WRITABLE = frozenset({"display_name", "bio", "avatar_url", "locale", "time_zone"})


@dataclass(frozen=True, slots=True)
class Profiles:
    """The rules of profiles."""

    store: ProfileStore
    clock: Clock

    async def create(
        self,
        caller: Caller,
        user_id: int,
        values: Mapping[str, Any],
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Create an account's profile; `user_id` 0 is the caller's account.

        Raises AccessDenied, InvalidFields for an unknown time zone, ProfileExists,
        UserNotFound.
        """
        user_id = user_id or caller.user_id
        if not _owns(caller, user_id):
            raise AccessDenied("only admins may create the profile of another user")
        _check_time_zone(values["time_zone"], "timeZone")
        now = self.clock()
        profile = Profile(user_id, **values, created_at=now, updated_at=now)
        return await self.store.add(profile, idempotency)

    async def get(self, caller: Caller, user_id: int) -> Profile:
        """Return a profile. Raises ProfileNotFound, also for another's private one."""
        include_private = _owns(caller, user_id)
        profile = await self.store.by_user(user_id, include_private=include_private)
        if profile is None:
            raise ProfileNotFound(user_id)
        return profile

    async def update(
        self,
        user_id: int,
        values: Mapping[str, object],
        etag: str,
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Change fields of a profile; a non-empty `etag` must be the current one.

        Raises InvalidFields, ProfileNotFound, EtagMismatch.
        """
        check_writable("profile", values, WRITABLE)
        _check_time_zone(str(values.get("time_zone", "")), "profile.timeZone")
        return await self.store.edit(
            user_id, Edit(values, etag, self.clock()), idempotency
        )


def _owns(caller: Caller, user_id: int) -> bool:
    return caller.is_admin or caller.user_id == user_id != 0


def _check_time_zone(name: str, field: str) -> None:
    """Raise InvalidFields for a name that is not in the IANA database."""
    if not name or _is_time_zone(name):
        return
    description = f"{name!r} is not in the IANA time zone database"
    raise InvalidFields([Violation(field, description, "time_zone.known")])


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    # zoneinfo also opens these files, which stand beside the names of the database
    return re.match(r"posix|right/|localtime$|Factory$", name) is None
