"""The check of identity providers: whether each can be found and has keys."""

from __future__ import annotations

import asyncio

from server.cli.monitoring.findings import Finding
from server.composition.log_ins.identities import identity_providers
from server.config import Settings
from server.domain.clock import system_clock
from server.identity_providers.http_client import RequestFailed
from server.identity_providers.provider import OpenIdProvider


async def check_identity_providers(settings: Settings) -> list[Finding]:
    """Read what each provider of OIDC_PROVIDERS publishes."""
    providers = identity_providers(settings, system_clock).values()
    return list(await asyncio.gather(*map(_check, providers)))


async def _check(provider: OpenIdProvider) -> Finding:
    place = f"{provider.id} ({provider.issuer})"
    try:
        count = await provider.check()
    except RequestFailed as error:
        advice = (
            "start the provider, or correct its entry in OIDC_PROVIDERS; until then, "
            "log-ins with it fail"
        )
        return Finding("identity", False, f"{place}: {error}", advice)
    if not count:
        advice = "the provider has to publish the keys that it signs with"
        return Finding("identity", False, f"{place}: no keys", advice)
    keys = "1 key" if count == 1 else f"{count} keys"
    return Finding("identity", True, f"{place}: responds, {keys}")
