"""Unsubscribe tokens, and the settings that they turn off."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.errors import MailedTokenInvalid
from server.domain.members.unsubscriptions import (
    SETTINGS_BY_KIND,
    UnsubscribeTokens,
    Unsubscriptions,
)
from server.domain.outbox.entries import EventType
from tests.fakes import Clock

TOKENS = UnsubscribeTokens(SecretKey("one secret").mac("unsubscribe"))


@dataclass(slots=True)
class FakeSubscriptions:
    """Settings that were turned off, in memory."""

    off: list[tuple[int, Collection[str]]] = field(default_factory=list)

    async def turn_off(
        self, user_id: int, settings: Collection[str], now: datetime
    ) -> None:
        self.off.append((user_id, settings))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EventType.FOLLOWED_POST, {"followed_posts"}),
        (EventType.NEW_FOLLOWER, {"new_followers"}),
        (EventType.DIGEST, {"followed_posts", "new_followers", "digest"}),
    ],
)
async def test_unsubscribe_turns_off_what_the_mail_needs(
    kind: EventType, settings: set[str]
) -> None:
    """A digest holds all news: without it they must not come one by one."""
    store = FakeSubscriptions()
    rules = Unsubscriptions(store, TOKENS, Clock())
    assert await rules.unsubscribe(TOKENS.make(7, kind)) == 7
    ((user_id, off),) = store.off
    assert (user_id, set(off)) == (7, settings)


def test_unsubscribe_tokens_differ_by_user_and_kind() -> None:
    """Each names one user and one kind; all fit into the contract's field."""
    tokens = {
        TOKENS.make(user_id, kind)
        for user_id in (1, 2**63 - 1)
        for kind in SETTINGS_BY_KIND
    }
    assert len(tokens) == 2 * len(SETTINGS_BY_KIND)
    assert max(map(len, tokens)) <= 128


def test_unsubscribe_token_outlives_a_new_secret_key() -> None:
    """SECRET_KEY_PREVIOUS still verifies; a foreign key does not."""
    token = TOKENS.make(7, EventType.DIGEST)
    changed = UnsubscribeTokens(SecretKey("new", "one secret").mac("unsubscribe"))
    assert changed.read(token) == (7, EventType.DIGEST)
    foreign = UnsubscribeTokens(SecretKey("new").mac("unsubscribe"))
    with pytest.raises(MailedTokenInvalid):
        foreign.read(token)
