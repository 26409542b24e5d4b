"""Members: profiles, settings, follows, overviews, scores, and their statistics."""

from __future__ import annotations

from server.composition.accounts import SERVICE
from server.composition.feature import Feature
from server.composition.resources import (
    Resources,
    Stores,
    page_tokens,
    unsubscribe_tokens,
)
from server.domain.members.follows import Follows
from server.domain.members.overviews import Overviews
from server.domain.members.profiles import Profiles
from server.domain.members.scores import Scores
from server.domain.members.settings import MemberSettings
from server.domain.members.unsubscriptions import Unsubscriptions
from server.rpc.members.follows import FollowServicer
from server.rpc.members.overviews import OverviewServicer
from server.rpc.members.profiles import ProfileServicer
from server.rpc.members.scores import ScoreServicer
from server.rpc.members.settings import SettingsServicer
from server.rpc.members.unsubscriptions import UnsubscriptionServicer
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.metrics import PostgresMetrics
from server.store.members.notifications import PostgresNotifications
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.posts.posts import PostgresPosts
from server.workers.periodic_jobs import PeriodicJobs
from server.workers.poller import Poller


def members_feature(resources: Resources, stores: Stores) -> Feature:
    """Build the feature."""
    database, clock = resources.database, resources.clock
    tokens, accounts = page_tokens(resources), stores.users
    follows = PostgresFollows(database)
    overviews = Overviews(accounts, PostgresPosts(database), follows)
    jobs = PeriodicJobs(
        PostgresAnalytics(database), PostgresNotifications(database, clock), clock
    )
    unsubscriptions = Unsubscriptions(
        PostgresSettings(database), unsubscribe_tokens(resources), clock
    )
    return Feature(
        servicers={
            SERVICE: (
                ProfileServicer(Profiles(PostgresProfiles(database), clock)),
                SettingsServicer(MemberSettings(PostgresSettings(database), clock)),
                FollowServicer(Follows(follows, accounts, tokens, clock)),
                OverviewServicer(overviews),
                ScoreServicer(Scores(PostgresMetrics(database), clock)),
                UnsubscriptionServicer(unsubscriptions),
            )
        },
        tasks=(Poller("periodic jobs", jobs.run_once, jobs.interval),),
    )
