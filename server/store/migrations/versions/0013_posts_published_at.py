"""Posts have the time of their first publication, and are listed by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from server.store.migrations.steps import create_index, run_in_batches

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column; a trigger fills it, also for releases that do not know it."""
    op.add_column(
        "posts",
        sa.Column("published_at", sa.DateTime(timezone=True)),
        if_not_exists=True,
    )
    _fill_when_published()
    _fill()
    key = ["state", "published_at", "id"]
    create_index("idx_posts_published_at", "posts", key, postgresql_include=["user_id"])
    create_index("idx_posts_user_id_published_at", "posts", ["user_id", *key])
    create_index(
        "idx_posts_category_id_published_at",
        "posts",
        ["category_id", *key],
        postgresql_include=["user_id"],
    )


def _fill_when_published() -> None:
    """Set it by a trigger, except for posts that were published before `_fill`."""
    op.execute(
        """
        create or replace function set_published_at()
        returns trigger language plpgsql as $$
        begin
          if tg_op = 'INSERT' then
            new.published_at := new.created_at;
          elsif old.state <> 2 then
            new.published_at := new.updated_at;
          end if;
          return new;
        end $$
        """
    )
    op.execute(
        "create or replace trigger post_published before insert or update on posts "
        "for each row when (new.state = 2 and new.published_at is null) "
        "execute function set_published_at()"
    )


def _fill() -> None:
    """Set it for published posts, as far as their publication is known.

    The outbox knows that of the last days. Older posts keep the place that readers
    know: by their creation, which is their publication unless they began as drafts.
    """
    run_in_batches(
        """
        update posts
        set published_at = least(posts.published_at, published.at)
        from (
          select (payload->>'post')::bigint as post_id, min(created_at) as at
          from outbox
          where kind = 'post.published' and id > :after and id <= :until
          group by 1
        ) published
        where posts.id = published.post_id and posts.state = 2
        """,
        "outbox",
    )
    run_in_batches(
        "update posts set published_at = created_at where state = 2"
        " and published_at is null and id > :after and id <= :until",
        "posts",
    )
