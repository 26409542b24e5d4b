"""Settings of members. A member who never wrote any has the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from server.domain.clock import Clock
from server.domain.edits import etag_of


class Theme(IntEnum):
    """The color theme of the user interface."""

    SYSTEM = 1
    LIGHT = 2
    DARK = 3


class Visibility(IntEnum):
    """Who sees a member's profile; PRIVATE means the member and admins."""

    MEMBERS = 1
    PRIVATE = 2


@dataclass(frozen=True, slots=True)
class UserSettings:
    """A member's settings. Mail is off by default; `digest` combines it, once a day."""

    followed_posts: bool = False
    new_followers: bool = False
    digest: bool = False
    theme: Theme = Theme.SYSTEM
    visibility: Visibility = Visibility.MEMBERS
    version: int = 0

    @property
    def etag(self) -> str:
        """The etag of this version; "0" for defaults that were never written."""
        return etag_of(self.version)


class SettingsStore(Protocol):
    """Stores settings."""

    async def by_user(self, user_id: int) -> UserSettings | None:
        """Return an account's settings, or None if it never wrote any."""

    async def replace(
        self, user_id: int, settings: UserSettings, etag: str, now: datetime
    ) -> UserSettings:
        """Replace an account's settings; a non-empty `etag` must be the current one.

        Raises UserNotFound, EtagMismatch.
        """


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """The rules of settings."""

    store: SettingsStore
    clock: Clock

    async def get(self, user_id: int) -> UserSettings:
        """Return an account's settings, or the defaults."""
        return await self.store.by_user(user_id) or UserSettings()

    async def replace(
        self, user_id: int, settings: UserSettings, etag: str
    ) -> UserSettings:
        """Replace all settings of an account.

        Raises UserNotFound, EtagMismatch.
        """
        return await self.store.replace(user_id, settings, etag, self.clock())
