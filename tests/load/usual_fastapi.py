"""GET /users/{id} in the style of most FastAPI services; uvicorn runs it.

It reads the service's table of users in the Postgres of DATABASE_URL and sends the
same JSON as the service. Tokens are HS256 with JWT_SECRET.
"""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SECRET = os.environ["JWT_SECRET"]
ROLES = ("ROLE_UNSPECIFIED", "ROLE_STUDENT", "ROLE_TEACHER", "ROLE_ADMIN")

app = FastAPI()
bearer = HTTPBearer()
engine = create_async_engine(os.environ["DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The declarative base."""


class UserRow(Base):
    """A row of the service's users."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    username: Mapped[str]
    role: Mapped[int]
    is_active: Mapped[bool]
    email_verified: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    version: Mapped[int]


class UserOut(BaseModel):
    """The answer."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    email: str
    username: str
    is_active: bool
    role: str
    email_verified: bool
    created_at: datetime
    updated_at: datetime
    etag: str


async def session() -> AsyncIterator[AsyncSession]:
    """Open a session for the request."""
    async with new_session() as opened:
        yield opened


async def claims(
    credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)],
) -> dict[str, Any]:
    """Verify the token."""
    try:
        payload: dict[str, Any] = jwt.decode(credentials.credentials, SECRET, ["HS256"])
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "the token is not valid") from error
    return payload


@app.get("/api/v1/users/{user_id}", response_model=UserOut)
async def read_user(
    user_id: int,
    signed_in: Annotated[dict[str, Any], Depends(claims)],
    db: Annotated[AsyncSession, Depends(session)],
) -> UserOut:
    """Read one account; its owner gets all fields."""
    user = await db.get(UserRow, user_id)
    if user is None:
        raise HTTPException(404, "not found")
    own = signed_in["sub"] == str(user.id)
    return UserOut(
        id=str(user.id),
        email=user.email if own else "",
        username=user.username,
        is_active=user.is_active,
        role=ROLES[user.role if own else 0],
        email_verified=user.email_verified and own,
        created_at=user.created_at,
        updated_at=user.updated_at,
        etag=f"{user.version:x}",
    )
