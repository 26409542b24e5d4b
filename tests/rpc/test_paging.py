"""Pages of a list that changes while it is read."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from itertools import count

import pytest

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import NewUser, Role
from tests.running import RunningService, SignedInUser

COUNT = 40
PAGE_SIZE = 5
_numbers = count()


async def add_account(service: RunningService) -> int:
    """Create an account that sorts before, between or after the permanent ones."""
    number = next(_numbers)
    name = f"{'abmz'[number % 4]}{number}_pages"
    new = NewUser(f"{name}@x.co", name, "", Role.STUDENT, datetime.now(UTC))
    return (await service.accounts.add(new)).id


async def add_two_delete_one(service: RunningService) -> None:
    """Create two accounts, and delete one of them."""
    user_id, _ = await add_account(service), await add_account(service)
    await service.accounts.delete(user_id, datetime.now(UTC))


async def ids_by_token(
    service: RunningService, caller: SignedInUser, sort_by: str
) -> list[int]:
    """Read all pages by token while accounts are created and deleted."""
    ids: list[int] = []
    token, more = "", True
    while more:
        request = pb.ListUsersRequest(
            sort_by=sort_by, page_size=PAGE_SIZE, page_token=token, is_active=True
        )
        page, *_ = await asyncio.gather(
            service.users.ListUsers(request, metadata=caller.metadata),
            add_two_delete_one(service),
            add_two_delete_one(service),
        )
        ids += [user.id for user in page.items]
        token, more = page.next_page_token, page.has_next
    return ids


@pytest.mark.parametrize("sort_by", ["-id", "username", "-username", "-created_at"])
async def test_paging_has_every_user_once_under_concurrent_changes(
    service: RunningService, sort_by: str
) -> None:
    """While accounts before, on and after the page are created and deleted."""
    permanent = {await add_account(service) for _ in range(COUNT)}
    caller = await service.signed_in()
    counts = Counter(await ids_by_token(service, caller, sort_by))
    assert permanent <= counts.keys()
    assert set(counts.values()) == {1}
