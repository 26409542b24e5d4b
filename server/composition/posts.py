"""Posts and their categories."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.resources import Resources, page_tokens
from server.domain.posts.categories import Categories
from server.domain.posts.posts import Posts
from server.rpc.posts.categories import CategoryServicer
from server.rpc.posts.posts import PostServicer
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts

SERVICE = "blatam.post.v1.PostService"


def posts_feature(resources: Resources) -> Feature:
    """Build the feature."""
    database, clock = resources.database, resources.clock
    tokens = page_tokens(resources)
    return Feature(
        servicers={
            SERVICE: (
                PostServicer(Posts(PostgresPosts(database), tokens, clock)),
                CategoryServicer(
                    Categories(PostgresCategories(database), tokens, clock)
                ),
            )
        }
    )
