"""Log-ins with identity providers, and linked identities."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.outbox import public_url
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.config import Settings, text_of
from server.domain.clock import Clock
from server.domain.identities.federated_log_ins import FederatedLogIns
from server.domain.identities.identities import Identities
from server.identity_providers.http_client import ProviderHttp
from server.identity_providers.provider import Client, OpenIdProvider
from server.rpc.auth.identities import IdentityServicer
from server.store.factors.identities import PostgresIdentities

REDIRECT_PATH = "/federated-login"  # the page that providers send browsers back to


def identities_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    settings, clock = resources.settings, resources.clock
    store = PostgresIdentities(resources.database)
    log_ins = FederatedLogIns(
        log_ins=rules.log_ins,
        store=store,
        providers=identity_providers(settings, clock),
        required_roles=settings.mfa_required_roles,
    )
    identities = Identities(rules.authentication.accounts, store, clock)
    return Feature(servicers={SERVICE: (IdentityServicer(log_ins, identities),)})


def identity_providers(settings: Settings, clock: Clock) -> dict[str, OpenIdProvider]:
    """Return the providers of OIDC_PROVIDERS by their ids, in the order of the file."""
    redirect_uri = public_url(settings).rstrip("/") + REDIRECT_PATH
    return {
        entry.id: OpenIdProvider(
            entry.id,
            entry.name,
            entry.issuer,
            Client(
                entry.client_id,
                text_of(entry.client_secret),
                redirect_uri,
                entry.scopes,
            ),
            ProviderHttp(
                allow_private_addresses=entry.allow_private_addresses,
                ca_file=entry.ca_file,
            ),
            clock,
        )
        for entry in settings.oidc_providers
    }
