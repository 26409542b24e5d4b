"""Pages of a list that others change meanwhile."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from itertools import count

import pytest

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import NewUser, Role
from tests.running import Running, SignedIn

STAY = 40
SIZE = 5
_numbers = count()


async def added(service: Running) -> int:
    """Make an account whose place is before, between or after those that stay."""
    number = next(_numbers)
    name = f"{'abmz'[number % 4]}{number}_pages"
    new = NewUser(f"{name}@x.co", name, "", Role.STUDENT, datetime.now(UTC))
    return (await service.accounts.add(new)).id


async def came_and_went(service: Running) -> None:
    """Make two accounts, and delete one of them."""
    gone, _ = await added(service), await added(service)
    await service.accounts.delete(gone, datetime.now(UTC))


async def walked(service: Running, who: SignedIn, sort_by: str) -> list[int]:
    """Follow tokens to the last page; while each is read, others come and go."""
    found: list[int] = []
    token, more = "", True
    while more:
        request = pb.ListUsersRequest(
            sort_by=sort_by, page_size=SIZE, page_token=token, is_active=True
        )
        page, *_ = await asyncio.gather(
            service.users.ListUsers(request, metadata=who.metadata),
            came_and_went(service),
            came_and_went(service),
        )
        found += [user.id for user in page.items]
        token, more = page.next_page_token, page.has_next
    return found


@pytest.mark.parametrize("sort_by", ["-id", "username", "-username", "-created_at"])
async def test_paging_has_every_user_once_under_concurrent_changes(
    service: Running, sort_by: str
) -> None:
    """While others sign up and are deleted, before, at and behind the page."""
    stay = {await added(service) for _ in range(STAY)}
    who = await service.signed_in()
    found = Counter(await walked(service, who, sort_by))
    assert stay <= found.keys()
    assert set(found.values()) == {1}
