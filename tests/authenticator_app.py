"""Users with an authenticator app, for which pyotp stands in."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pyotp

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1 import factor_pb2 as pb
from blatam.user.v1 import user_pb2
from tests.running import PASSWORD, RunningService, SignedInUser


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A user with an authenticator app, whose session has two factors."""

    signed_in: SignedInUser
    app: pyotp.TOTP
    factor_id: int
    recovery_codes: list[str]

    @property
    def user(self) -> user_pb2.User:
        return self.signed_in.user

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self.signed_in.metadata

    def next_code(self) -> str:
        """Return the code of the step after that of the confirmation."""
        return self.app.at(datetime.now(UTC), counter_offset=1)


async def enrol(service: RunningService, who: SignedInUser) -> Enrolled:
    """Add an authenticator app with its present code."""
    created = await service.auth.CreateTotpFactor(
        pb.CreateTotpFactorRequest(name="phone"), metadata=who.metadata
    )
    app = pyotp.TOTP(created.secret)
    confirm = pb.ConfirmTotpFactorRequest(id=created.id, totp_code=app.now())
    confirmed = await service.auth.ConfirmTotpFactor(confirm, metadata=who.metadata)
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=who.tokens.refresh_token)
    tokens = (await service.auth.RefreshToken(refresh)).tokens
    codes = list(confirmed.recovery_codes)
    return Enrolled(SignedInUser(who.user, tokens), app, created.id, codes)


async def enrolled(service: RunningService) -> Enrolled:
    return await enrol(service, await service.signed_in())


async def challenge_of(
    service: RunningService, who: Enrolled, password: str = PASSWORD
) -> pb.Challenge:
    """Log in with the password, and return the challenge."""
    request = auth_pb2.LoginRequest(identifier=who.user.username, password=password)
    response = await service.auth.Login(request)
    assert response.WhichOneof("outcome") == "challenge"
    return response.challenge
