"""The contract of every store of accounts, in memory and in Postgres."""

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import (
    SORT_VALUES,
    NewUser,
    Role,
    User,
    UserEdit,
    UserFilter,
)
from server.domain.errors import (
    EmailTaken,
    EtagMismatch,
    LastAdmin,
    UsernameTaken,
    UserNotFound,
)
from server.domain.idempotency import IdempotencyRecord, RequestKey, ResponseExists
from server.domain.paging import PageRequest, Position, Sort
from server.store.accounts.user_reads import UserReads
from server.store.connections.connect import Database
from tests.fakes import NOON
from tests.round_trips import counting_connections, round_trips
from tests.store.conftest import StoresUnderTest


def new(name: str, number: int = 0, role: Role = Role.STUDENT) -> NewUser:
    at = NOON + timedelta(seconds=number)
    return NewUser(f"{name.lower()}@example.com", name, "hash", role, at)


async def test_added_account_is_found(stores: StoresUnderTest) -> None:
    user = await stores.users.add(new("Ana"))
    assert await stores.users.by_id(user.id) == user
    assert (user.username, user.version, user.role) == ("Ana", 1, Role.STUDENT)
    for identifier in ("ana", "ana@example.com"):
        account = await stores.accounts.account(identifier)
        assert account
        assert (account.user_id, account.password_hash) == (user.id, "hash")
    assert await stores.accounts.account("ann") is None
    assert await stores.users.by_id(user.id + 1) is None


async def test_usernames_and_emails_are_unique(stores: StoresUnderTest) -> None:
    """R31: without regard to case; the constraint decides, not a look-up before."""
    await stores.users.add(new("Ana"))
    with pytest.raises(UsernameTaken):
        await stores.users.add(NewUser("b@x.co", "ANA", "", Role.STUDENT, NOON))
    with pytest.raises(EmailTaken):
        await stores.users.add(
            NewUser("ana@example.com", "bea", "", Role.STUDENT, NOON)
        )


async def test_replace_hash_requires_the_current_hash(stores: StoresUnderTest) -> None:
    user = await stores.users.add(new("ana"))
    await stores.accounts.replace_hash(user.id, "other", "worse")
    await stores.accounts.replace_hash(user.id, "hash", "better")
    account = await stores.accounts.account_by_id(user.id)
    assert account
    assert account.password_hash == "better"


async def test_idempotent_response_is_written_with_its_change(
    stores: StoresUnderTest,
) -> None:
    """A second request under the same key changes nothing."""
    key = RequestKey("anonymous", "/x/Y", "id")

    def idempotency(name: str) -> IdempotencyRecord[User]:
        return IdempotencyRecord(
            key, name.encode(), NOON, lambda user: user.username.encode()
        )

    await stores.users.add(new("ana"), idempotency("ana"))
    with pytest.raises(ResponseExists):
        await stores.users.add(new("bea"), idempotency("bea"))
    assert await stores.accounts.account("bea") is None
    stored = await stores.answers.find(key, NOON)
    assert stored
    assert (stored.fingerprint, stored.answer) == (b"ana", b"ana")
    assert await stores.answers.find(key, NOON + timedelta(seconds=1)) is None


@pytest.mark.parametrize("key", ["id", "created_at", "username"])
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_have_every_account_once_in_order(
    stores: StoresUnderTest, key: str, descending: bool
) -> None:
    """By number and by position, for every sort, ties included."""
    names = ["ana", "Zoe", "b_b", "bea", "Ben9", "carl", "CARLA"]
    for number, name in enumerate(names):
        await stores.users.add(new(name, number // 3))
    sort, no_filter = Sort(key, descending), UserFilter()
    by_number: list[User] = []
    for number in (1, 2, 3):
        request = PageRequest(3, number)
        rows = await stores.users.page(no_filter, sort, request)
        assert (rows.total, rows.total_estimated) == (7, False)
        assert rows.more is (number < 3)
        by_number += rows.items
    assert len({user.id for user in by_number}) == len(names)
    values = [(_place(user, key), user.id) for user in by_number]
    assert all((a > b) if descending else (a < b) for a, b in pairwise(values))
    by_position: list[User] = []
    after = None
    while not by_position or rows.more:
        rows = await stores.users.page(no_filter, sort, PageRequest(2, 1, after))
        by_position += rows.items
        last = rows.items[-1]
        after = Position(SORT_VALUES[key](last), last.id)
    assert by_position == by_number


def _place(user: User, key: str) -> str:
    return f"{user.id:09}" if key == "id" else SORT_VALUES[key](user)


async def test_filters_select_accounts(stores: StoresUnderTest) -> None:
    """R33: a prefix is plain text, not a LIKE pattern."""
    for name, role in (
        ("ana_x", Role.STUDENT),
        ("anaYx", Role.ADMIN),
        ("Bea", Role.STUDENT),
    ):
        await stores.users.add(new(name, role=role))

    async def names(user_filter: UserFilter) -> list[str]:
        rows = await stores.users.page(user_filter, Sort("id"), PageRequest(10))
        assert rows.total == len(rows.items)
        return [user.username for user in rows.items]

    assert await names(UserFilter(username_prefix="ANA")) == ["ana_x", "anaYx"]
    assert await names(UserFilter(username_prefix="ana_")) == ["ana_x"]
    assert await names(UserFilter(username_prefix="%")) == []
    assert await names(UserFilter(role=Role.ADMIN)) == ["anaYx"]
    assert await names(UserFilter(email="bea@example.com")) == ["Bea"]
    assert await names(UserFilter(is_active=False)) == []


def change(etag: str = "", **values: object) -> UserEdit:
    return UserEdit(values, etag, NOON + timedelta(hours=1))


async def test_edit_changes_the_named_fields(stores: StoresUnderTest) -> None:
    user = await stores.users.add(new("ana"))
    changed = await stores.users.edit(user.id, change(username="Bea"))
    assert (changed.username, changed.email) == ("Bea", user.email)
    assert (changed.version, changed.updated_at) == (2, NOON + timedelta(hours=1))
    assert await stores.accounts.account("bea")
    assert await stores.accounts.account("ana") is None
    same = await stores.users.edit(user.id, change(username="Bea"))
    assert same == changed


async def test_edit_refuses_a_stale_etag(stores: StoresUnderTest) -> None:
    """AIP-154: the version known must be the one in force."""
    user = await stores.users.add(new("ana"))
    changed = await stores.users.edit(user.id, change(user.etag, username="bea"))
    with pytest.raises(EtagMismatch):
        await stores.users.edit(user.id, change(user.etag, username="cat"))
    assert await stores.users.by_id(user.id) == changed


async def test_edit_keeps_the_unique_constraints(stores: StoresUnderTest) -> None:
    await stores.users.add(new("ana"))
    bea = await stores.users.add(new("bea"))
    with pytest.raises(UsernameTaken):
        await stores.users.edit(bea.id, change(username="ANA"))
    with pytest.raises(EmailTaken):
        await stores.users.edit(bea.id, change(email="ana@example.com"))
    with pytest.raises(UserNotFound):
        await stores.users.edit(999, change(username="x"))
    assert await stores.users.by_id(bea.id) == bea


async def test_last_active_admin_cannot_be_removed(stores: StoresUnderTest) -> None:
    """Neither by demotion nor by disabling nor by deletion."""
    root = await stores.users.add(new("root", role=Role.ADMIN))
    for values in ({"role": Role.STUDENT}, {"is_active": False}):
        with pytest.raises(LastAdmin):
            await stores.users.edit(root.id, change(**values))
    with pytest.raises(LastAdmin):
        await stores.users.delete(root.id, NOON)
    other = await stores.users.add(new("other", role=Role.ADMIN))
    await stores.users.edit(root.id, change(role=Role.STUDENT))
    with pytest.raises(LastAdmin):
        await stores.users.delete(other.id, NOON)


async def test_two_admins_cannot_remove_each_other(
    real_stores: StoresUnderTest,
) -> None:
    """Locks in one order: one of them stays, without a deadlock."""
    users = real_stores.users
    ana = await users.add(new("ana", role=Role.ADMIN))
    bob = await users.add(new("bob", role=Role.ADMIN))
    outcomes = await asyncio.gather(
        users.edit(ana.id, change(is_active=False)),
        users.delete(bob.id, NOON),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, LastAdmin) for outcome in outcomes) == 1


async def test_deleted_accounts_are_not_found_and_keep_their_names(
    stores: StoresUnderTest,
) -> None:
    """R30: username and e-mail stay reserved until the account is restored."""
    user = await stores.users.add(new("ana"))
    await stores.users.delete(user.id, NOON)
    assert await stores.users.by_id(user.id) is None
    assert await stores.accounts.account("ana") is None
    rows = await stores.users.page(UserFilter(), Sort("id"), PageRequest(5))
    assert (list(rows.items), rows.total) == ([], 0)
    with pytest.raises(UserNotFound):
        await stores.users.delete(user.id, NOON)
    with pytest.raises(UsernameTaken):
        await stores.users.add(NewUser("new@x.co", "ANA", "", Role.STUDENT, NOON))
    with pytest.raises(UserNotFound):
        await stores.users.undelete(user.id, NOON, NOON)
    restored = await stores.users.undelete(user.id, NOON - timedelta(seconds=1), NOON)
    assert await stores.users.by_id(user.id) == restored
    assert restored.username == "ana"


async def test_by_ids_leaves_out_unknown_ids(stores: StoresUnderTest) -> None:
    added = [await stores.users.add(new(name)) for name in ("ana", "bea")]
    by_id = await stores.users.by_ids([added[1].id, 999, added[0].id])
    assert by_id == {user.id: user for user in added}


async def test_page_beyond_the_last_is_empty_and_counted(
    stores: StoresUnderTest,
) -> None:
    await stores.users.add(new("ana"))
    rows = await stores.users.page(UserFilter(), Sort("id"), PageRequest(20, 9))
    assert (rows.items, rows.more, rows.total) == ([], False, 1)


async def test_totals_above_10000_are_estimates(
    database: Database, database_url: str
) -> None:
    """Two statements: the second one asks the planner."""
    async with database.transaction() as connection:
        await connection.execute(
            sa.text(
                "insert into users (email, username, username_folded,"
                " hashed_password, role, created_at, updated_at)"
                " select n || '@x.co', 'u' || n, 'u' || n, '', 1, now(), now()"
                " from generate_series(1, 12000) n"
            )
        )
        await connection.execute(sa.text("analyze users"))
    counted = Database(database_url)
    users, few = UserReads(counted), UserFilter(username_prefix="u119")
    with counting_connections():
        await users.page(few, Sort("id"), PageRequest(5))  # connects
    with round_trips() as statements:
        rows = await users.page(UserFilter(), Sort("id"), PageRequest(5))
    assert rows.total_estimated
    assert rows.total == pytest.approx(12_000, rel=0.1)
    assert len(statements) == 2
    with round_trips() as statements:
        assert (await users.page(few, Sort("id"), PageRequest(5))).total == 111
    assert len(statements) == 1
    await counted.close()


async def test_concurrent_sign_ups_create_one_account(
    real_stores: StoresUnderTest,
) -> None:
    """L15: one of fifty concurrent sign-ups succeeds; the others are refused."""
    users = real_stores.users
    outcomes = await asyncio.gather(
        *(users.add(new("ana")) for _ in range(50)), return_exceptions=True
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, User)]
    losers = [o for o in outcomes if isinstance(o, EmailTaken | UsernameTaken)]
    assert (len(winners), len(losers)) == (1, 49)
