"""A small app with fastapi-users, as its documentation sets one up."""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin, schemas
from fastapi_users.authentication import (
    AuthenticationBackend,
    BearerTransport,
    JWTStrategy,
)
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from fastapi_users.password import PasswordHelper
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

SECRET = os.environ["JWT_SECRET"]
# The parameters of the service's own hashes.
HASHES = PasswordHash((Argon2Hasher(memory_cost=19_456, time_cost=2, parallelism=1),))

engine = create_async_engine(os.environ["DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The declarative base."""


class User(SQLAlchemyBaseUserTableUUID, Base):
    """An account."""


class UserRead(schemas.BaseUser[uuid.UUID]):
    """An account as it is answered."""


class UserCreate(schemas.BaseUserCreate):
    """A sign-up."""


class UserUpdate(schemas.BaseUserUpdate):
    """A change of an account."""


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    """The rules of accounts, as they are by default."""

    reset_password_token_secret = SECRET
    verification_token_secret = SECRET


async def session() -> AsyncIterator[AsyncSession]:
    """Open a session for the request."""
    async with new_session() as opened:
        yield opened


async def user_database(
    opened: Annotated[AsyncSession, Depends(session)],
) -> AsyncIterator[SQLAlchemyUserDatabase[User, uuid.UUID]]:
    """Return the accounts of the request's session."""
    yield SQLAlchemyUserDatabase(opened, User)


async def user_manager(
    accounts: Annotated[
        SQLAlchemyUserDatabase[User, uuid.UUID], Depends(user_database)
    ],
) -> AsyncIterator[UserManager]:
    """Return the rules for the request."""
    yield UserManager(accounts, PasswordHelper(HASHES))


def jwt_strategy() -> JWTStrategy[User, uuid.UUID]:
    """Return how tokens are signed."""
    return JWTStrategy(secret=SECRET, lifetime_seconds=3600)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the table, one worker after the other."""
    async with engine.begin() as connection:
        await connection.execute(text("select pg_advisory_xact_lock(1)"))
        await connection.run_sync(Base.metadata.create_all)
    yield


backend = AuthenticationBackend("jwt", BearerTransport("auth/login"), jwt_strategy)
users = FastAPIUsers[User, uuid.UUID](user_manager, [backend])
app = FastAPI(lifespan=lifespan)
app.include_router(users.get_auth_router(backend), prefix="/auth")
app.include_router(users.get_register_router(UserRead, UserCreate), prefix="/auth")
app.include_router(users.get_users_router(UserRead, UserUpdate), prefix="/users")
