"""Passkeys: as a second factor, and log-ins without a password."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.factors import factor_rules
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.domain.auth.passkey_login import PasskeyLogIn
from server.domain.factors.passkeys import PasskeyCreation
from server.rpc.auth.passkeys import Passkeys, PasskeyServicer


def passkeys_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    passkeys = None
    if proofs := rules.passkeys:
        creation = PasskeyCreation(
            factors=factor_rules(resources, rules),
            store=proofs.store,
            challenges=rules.challenges,
            relying_party=proofs.relying_party,
        )
        log_in = PasskeyLogIn(rules.authentication, proofs)
        passkeys = Passkeys(creation, log_in)
    return Feature(servicers={SERVICE: (PasskeyServicer(passkeys),)})
