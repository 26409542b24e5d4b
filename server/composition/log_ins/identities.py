"""Log-ins with identity providers, and linked identities."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.rpc.auth.identities import IdentityServicer


def identities_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    return Feature(servicers={SERVICE: (IdentityServicer(),)})
