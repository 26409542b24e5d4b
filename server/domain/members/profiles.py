"""Profiles: what members say of themselves, and who may read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag
from server.domain.errors import (
    AccessDenied,
    InvalidFields,
    ProfileNotFound,
    Violation,
)
from server.domain.idempotency import IdempotencyRecord


@dataclass(frozen=True, slots=True)
class Profile:
    """What a member says of themself; "" for what they do not say."""

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
        """The version as callers write it."""
        return etag(self.version)


class ProfileStore(Protocol):
    """Keeps profiles; those of deleted accounts are not among them."""

    async def add(
        self, profile: Profile, idempotency: IdempotencyRecord[Profile] | None = None
    ) -> Profile:
        """Write a profile. Raises ProfileExists, UserNotFound, AnswerExists."""

    async def by_user(self, user_id: int, *, private_too: bool) -> Profile | None:
        """Give an account's profile, if it is not private or private ones count."""

    async def edit(
        self,
        user_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Change a profile. Raises ProfileNotFound, EtagMismatch, AnswerExists."""


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
        """Make an account's profile; 0 is the caller's account.

        Raises AccessDenied, InvalidFields for a time zone that there is not,
        ProfileExists, UserNotFound.
        """
        user_id = user_id or caller.user_id
        if not _owns(caller, user_id):
            raise AccessDenied("only you and admins may make your profile")
        _check_time_zone(values["time_zone"], "timeZone")
        now = self.clock()
        made = Profile(user_id, **values, created_at=now, updated_at=now)
        return await self.store.add(made, idempotency)

    async def get(self, caller: Caller, user_id: int) -> Profile:
        """Give a profile; ProfileNotFound for a private one of somebody else."""
        profile = await self.store.by_user(user_id, private_too=_owns(caller, user_id))
        if profile is None:
            raise ProfileNotFound(user_id)
        return profile

    async def update(
        self,
        user_id: int,
        values: Mapping[str, object],
        known: str,
        idempotency: IdempotencyRecord[Profile] | None = None,
    ) -> Profile:
        """Change fields of a profile; `known` is the etag that must hold, if any.

        Raises InvalidFields, ProfileNotFound, EtagMismatch.
        """
        check_writable("profile", values, WRITABLE)
        _check_time_zone(str(values.get("time_zone", "")), "profile.timeZone")
        return await self.store.edit(
            user_id, Edit(values, known, self.clock()), idempotency
        )


def _owns(caller: Caller, user_id: int) -> bool:
    return caller.is_admin or caller.user_id == user_id != 0


def _check_time_zone(name: str, field: str) -> None:
    """Raise InvalidFields for a name that the IANA database does not have."""
    if not name or _exists(name):
        return
    raise InvalidFields([Violation(field, f"there is no {name!r}", "time_zone.known")])


def _exists(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    # "localtime", "posixrules" and "posix/..." lie beside the names of the database
    return re.match(r"posix|right/|localtime$|Factory$", name) is None
