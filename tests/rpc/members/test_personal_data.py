"""What members write is exported to them, and erased with their account."""

import pytest
import sqlalchemy as sa

from blatam.post.v1 import post_pb2
from blatam.user.v1 import profile_pb2, settings_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.domain.edits import json_name
from server.store.accounts.personal_data import user_columns
from server.store.connections.connect import Database
from server.store.tables import metadata
from tests.rpc.test_personal_data import exported
from tests.running import PASSWORD, RunningService, SignedInUser

TABLES = ("user_profiles", "user_settings", "follows", "posts", "user_analytics",
          "notifications")  # fmt: skip


async def fill_tables(
    service: RunningService, ana: SignedInUser, bea: SignedInUser
) -> None:
    """Write to every table; the last e-mail arrives when all is written."""
    for member in (ana, bea):
        await write(service, member)
    for follower, followed in ((ana, bea), (bea, ana)):
        follow = pb.FollowUserRequest(id=followed.user.id)
        await service.users.FollowUser(follow, metadata=follower.metadata)
    for member in (ana, bea):
        await service.mailbox.mail(member.user.email, "Someone follows you")


async def write(service: RunningService, member: SignedInUser) -> None:
    profile = profile_pb2.CreateUserProfileRequest(display_name="Anastasia")
    await service.users.CreateUserProfile(profile, metadata=member.metadata)
    settings = settings_pb2.UpdateUserSettingsRequest()
    settings.settings.notifications.new_followers = True
    await service.users.UpdateUserSettings(settings, metadata=member.metadata)
    post = post_pb2.CreatePostRequest(title="Anastasia's", body="Many.")
    await service.posts.CreatePost(post, metadata=member.metadata)


async def row_counts(database: Database, user_id: int) -> dict[str, int]:
    """Return the number of rows about a user, by table."""
    counts = {}
    async with database.reading() as connection:
        for name in TABLES:
            table = metadata.tables[name]
            about = [column == user_id for column in user_columns(table)]
            query = sa.select(sa.func.count()).select_from(table).where(sa.or_(*about))
            counts[name] = (await connection.execute(query)).scalar_one()
    return counts


@pytest.mark.parametrize("role", [Role.STUDENT, Role.ADMIN])
async def test_personal_data_is_exported_and_erased(
    service: RunningService, database_url: str, role: Role
) -> None:
    """By the member and by an admin alike; the data of others stays."""
    ana, bea = await service.signed_in(), await service.signed_in()
    await fill_tables(service, ana, bea)
    database = Database(database_url)
    assert all((await row_counts(database, ana.user.id)).values())
    document = await exported(service, ana, ana.user.id)
    for name in TABLES:
        assert len(document[json_name(name)]) > 0, name
    (profile,) = document["userProfiles"]
    assert profile["displayName"] == "Anastasia"
    assert profile["userId"] == str(ana.user.id)
    follows = [(row["followerId"], row["followedId"]) for row in document["follows"]]
    ana_id, bea_id = str(ana.user.id), str(bea.user.id)
    assert sorted(follows) == sorted([(ana_id, bea_id), (bea_id, ana_id)])
    # the notifications that her followers received are the followers' data
    assert {row["userId"] for row in document["notifications"]} == {ana_id}
    assert document["posts"][0]["body"] == "Many."
    caller = ana if role is Role.STUDENT else await service.signed_in(Role.ADMIN)
    erase = pb.EraseUserRequest(id=ana.user.id, current_password=PASSWORD)
    await service.users.EraseUser(erase, metadata=caller.metadata)
    assert not any((await row_counts(database, ana.user.id)).values())
    remaining = await row_counts(database, bea.user.id)
    assert [name for name in TABLES if not remaining[name]] == [
        "follows",
        "notifications",
    ]
    await database.close()
