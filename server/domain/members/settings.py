"""Settings: how members want the academy to be. Who has none has the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from server.domain.clock import Clock
from server.domain.edits import etag


class Theme(IntEnum):
    """The look of the academy."""

    SYSTEM = 1
    LIGHT = 2
    DARK = 3


class Visibility(IntEnum):
    """Who sees a member's profile; private is the member's own and admins'."""

    MEMBERS = 1
    PRIVATE = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """A member's settings. Mail is asked for; `digest` has it come once a day."""

    followed_posts: bool = False
    new_followers: bool = False
    digest: bool = False
    theme: Theme = Theme.SYSTEM
    visibility: Visibility = Visibility.MEMBERS
    version: int = 0

    @property
    def etag(self) -> str:
        """The version as callers write it; "0" for defaults never changed."""
        return etag(self.version)


class SettingsStore(Protocol):
    """Keeps settings."""

    async def of(self, user_id: int) -> Settings | None:
        """Give an account's settings, if they were ever written."""

    async def replace(
        self, user_id: int, settings: Settings, known: str, now: datetime
    ) -> Settings:
        """Put settings in place of an account's; `known` is the etag that must hold.

        Raises UserNotFound, EtagMismatch.
        """


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """The rules of settings."""

    store: SettingsStore
    clock: Clock

    async def get(self, user_id: int) -> Settings:
        """Give an account's settings."""
        return await self.store.of(user_id) or Settings()

    async def replace(self, user_id: int, settings: Settings, known: str) -> Settings:
        """Replace an account's settings, all of them.

        Raises UserNotFound, EtagMismatch.
        """
        return await self.store.replace(user_id, settings, known, self.clock())
