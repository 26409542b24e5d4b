"""Passkeys: as a second factor, and log-ins without a password."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.rpc.auth.passkeys import PasskeyServicer


def passkeys_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    return Feature(servicers={SERVICE: (PasskeyServicer(),)})
