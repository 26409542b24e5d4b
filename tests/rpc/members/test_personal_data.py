"""What members leave at the academy is given to them, and erased with them."""

from typing import Any

import pytest
import sqlalchemy as sa

from blatam.post.v1 import post_pb2
from blatam.user.v1 import profile_pb2, settings_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.domain.edits import json_name
from server.store.accounts.personal_data import user_columns
from server.store.connect import Database
from server.store.tables import metadata
from tests.running import PASSWORD, Running, SignedIn

THEIRS = ("user_profiles", "user_settings", "follows", "posts", "user_analytics",
          "notifications")  # fmt: skip


async def lives(service: Running, ana: SignedIn, bea: SignedIn) -> None:
    """Leave traces in every table; the news come by mail when all is written."""
    for who in (ana, bea):
        await life(service, who)
    for who, whom in ((ana, bea), (bea, ana)):
        follow = pb.FollowUserRequest(id=whom.user.id)
        await service.users.FollowUser(follow, metadata=who.metadata)
    for who in (ana, bea):
        await service.mailbox.mail(who.user.email, "Somebody follows you")


async def life(service: Running, who: SignedIn) -> None:
    profile = profile_pb2.CreateUserProfileRequest(display_name="Anastasia")
    await service.users.CreateUserProfile(profile, metadata=who.metadata)
    settings = settings_pb2.UpdateUserSettingsRequest()
    settings.settings.notifications.new_followers = True
    await service.users.UpdateUserSettings(settings, metadata=who.metadata)
    post = post_pb2.CreatePostRequest(title="Anastasia's", body="Many.")
    await service.posts.CreatePost(post, metadata=who.metadata)


async def rows_of(database: Database, user_id: int) -> dict[str, int]:
    """Count the rows that name a user, by table."""
    found = {}
    async with database.reading() as connection:
        for name in THEIRS:
            table = metadata.tables[name]
            named = [column == user_id for column in user_columns(table)]
            query = sa.select(sa.func.count()).select_from(table).where(sa.or_(*named))
            found[name] = (await connection.execute(query)).scalar_one()
    return found


@pytest.mark.parametrize("role", [Role.STUDENT, Role.ADMIN])
async def test_it_is_given_and_erased(
    service: Running, database_url: str, role: Role
) -> None:
    """By the member and by an admin alike; what others wrote stays."""
    ana, bea = await service.signed_in(), await service.signed_in()
    await lives(service, ana, bea)
    database = Database(database_url)
    assert all((await rows_of(database, ana.user.id)).values())
    request = pb.ExportUserRequest(id=ana.user.id)
    answer = await service.users.ExportUser(request, metadata=ana.metadata)
    held: Any = answer.document
    for name in THEIRS:
        assert len(held[json_name(name)]) > 0, name
    assert held["userProfiles"][0]["displayName"] == "Anastasia"
    assert held["userProfiles"][0]["userId"] == str(ana.user.id)
    # whom a member's deeds were told to is nobody's but theirs
    told = {row["userId"] for row in held["notifications"]}
    assert told == {str(ana.user.id)}
    assert held["posts"][0]["body"] == "Many."
    by = ana if role is Role.STUDENT else await service.signed_in(Role.ADMIN)
    erase = pb.EraseUserRequest(id=ana.user.id, current_password=PASSWORD)
    await service.users.EraseUser(erase, metadata=by.metadata)
    assert not any((await rows_of(database, ana.user.id)).values())
    left = await rows_of(database, bea.user.id)
    assert [name for name in THEIRS if not left[name]] == ["follows", "notifications"]
    await database.close()
