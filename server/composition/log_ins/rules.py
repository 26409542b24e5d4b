"""The rules of log-ins, which the features of this package share."""

from __future__ import annotations

from dataclasses import dataclass

from server.composition.resources import Resources
from server.domain.auth.authentication import Authentication
from server.domain.auth.log_ins import LogIns
from server.domain.factors.challenges import Challenges
from server.domain.factors.totp import Totp
from server.store.factors.challenges import PostgresChallenges
from server.store.factors.uses import PostgresFactorUses

SERVICE = "blatam.auth.v1.AuthService"
SITE_NAME = "Blatam Academy"  # as authenticators show it


@dataclass(frozen=True, slots=True)
class LogInRules:
    """The rules of sessions, of challenges, and of log-ins on top of them."""

    authentication: Authentication
    challenges: Challenges
    log_ins: LogIns
    totp: Totp
    uses: PostgresFactorUses


def log_in_rules(resources: Resources, authentication: Authentication) -> LogInRules:
    """Build the rules."""
    clock, secret = resources.clock, resources.secret
    challenges = Challenges(PostgresChallenges(resources.database), clock)
    return LogInRules(
        authentication=authentication,
        challenges=challenges,
        log_ins=LogIns(authentication, challenges),
        totp=Totp(secret.cipher("totp-secrets"), SITE_NAME, clock),
        uses=PostgresFactorUses(resources.database),
    )
