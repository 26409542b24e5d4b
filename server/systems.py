"""The academy's other systems, built over their stores: members' and posts'."""

from __future__ import annotations

from server.domain.clock import Clock
from server.domain.members.event_handlers import EventHandlers
from server.domain.members.follows import AccountReader, Follows
from server.domain.members.overviews import Overviews
from server.domain.members.periodic_jobs import PeriodicJobs
from server.domain.members.profiles import Profiles
from server.domain.members.scores import Scores
from server.domain.members.settings import MemberSettings
from server.domain.paging import PageTokens
from server.domain.posts.categories import Categories
from server.domain.posts.posts import Posts
from server.rpc.members.follows import FollowServicer
from server.rpc.members.overviews import OverviewServicer
from server.rpc.members.profiles import ProfileServicer
from server.rpc.members.scores import ScoreServicer
from server.rpc.members.settings import SettingsServicer
from server.rpc.posts.categories import CategoryServicer
from server.rpc.posts.posts import PostServicer
from server.store.connect import Database
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.metrics import PostgresMetrics
from server.store.members.notifications import PostgresNotifications
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts


def members(
    database: Database, accounts: AccountReader, tokens: PageTokens, clock: Clock
) -> tuple[object, ...]:
    """Give the parts of UserService that are not about the account itself."""
    follows = PostgresFollows(database)
    return (
        ProfileServicer(Profiles(PostgresProfiles(database), clock)),
        SettingsServicer(MemberSettings(PostgresSettings(database), clock)),
        FollowServicer(Follows(follows, accounts, tokens, clock)),
        OverviewServicer(Overviews(accounts, PostgresPosts(database), follows)),
        ScoreServicer(Scores(PostgresMetrics(database), clock)),
    )


def event_handlers(database: Database, clock: Clock) -> EventHandlers:
    """Give what follows from events of members and posts."""
    return EventHandlers(
        PostgresAnalytics(database), PostgresNotifications(database, clock)
    )


def periodic_jobs(database: Database, clock: Clock) -> PeriodicJobs:
    """Give what is counted and told from time to time."""
    analytics, notifications = (
        PostgresAnalytics(database),
        PostgresNotifications(database, clock),
    )
    return PeriodicJobs(analytics, notifications, clock)


def posts(database: Database, tokens: PageTokens, clock: Clock) -> tuple[object, ...]:
    """Give the parts of PostService."""
    return (
        PostServicer(Posts(PostgresPosts(database), tokens, clock)),
        CategoryServicer(Categories(PostgresCategories(database), tokens, clock)),
    )
