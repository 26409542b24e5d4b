"""The rules of log-ins, which the features of this package share."""

from __future__ import annotations

from dataclasses import dataclass

from server.composition.resources import Resources
from server.config import Settings
from server.domain.auth.authentication import Authentication
from server.domain.auth.log_ins import LogIns
from server.domain.factors.challenges import Challenges
from server.domain.factors.passkeys import PasskeyProofs
from server.domain.factors.relying_party import relying_party
from server.domain.factors.totp import Totp
from server.store.factors.challenges import PostgresChallenges
from server.store.factors.passkeys import PostgresPasskeys
from server.store.factors.uses import PostgresFactorUses

SERVICE = "blatam.auth.v1.AuthService"
SITE_NAME = "Blatam Academy"  # as authenticators show it


@dataclass(frozen=True, slots=True)
class LogInRules:
    """The rules of sessions, of challenges, and of log-ins on top of them.

    `passkeys` is None if the address of the site is not known.
    """

    authentication: Authentication
    challenges: Challenges
    log_ins: LogIns
    totp: Totp
    uses: PostgresFactorUses
    passkeys: PasskeyProofs | None


def log_in_rules(resources: Resources, authentication: Authentication) -> LogInRules:
    """Build the rules."""
    clock, secret = resources.clock, resources.secret
    challenges = Challenges(PostgresChallenges(resources.database), clock)
    passkeys = _passkey_proofs(resources, challenges)
    return LogInRules(
        authentication=authentication,
        challenges=challenges,
        log_ins=LogIns(authentication, challenges, passkeys),
        totp=Totp(secret.cipher("totp-secrets"), SITE_NAME, clock),
        uses=PostgresFactorUses(resources.database),
        passkeys=passkeys,
    )


def site_url(settings: Settings) -> str:
    """Return the origin that passkeys belong to, "" if it is not known.

    With DEBUG, which only this machine can reach, it is localhost: browsers accept
    passkeys there without TLS, but not at an IP address.
    """
    if settings.public_url or not settings.debug:
        return settings.public_url
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://localhost:{settings.http_listen.rpartition(':')[2]}"


def _passkey_proofs(
    resources: Resources, challenges: Challenges
) -> PasskeyProofs | None:
    site = relying_party(site_url(resources.settings), SITE_NAME)
    if site is None:
        return None
    store = PostgresPasskeys(resources.database, resources.feed)
    return PasskeyProofs(store, challenges, site, resources.clock)
