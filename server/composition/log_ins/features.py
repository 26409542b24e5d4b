"""The list of this package's features."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.factors import factors_feature
from server.composition.log_ins.identities import identities_feature
from server.composition.log_ins.impersonation import impersonation_feature
from server.composition.log_ins.login_codes import login_codes_feature
from server.composition.log_ins.passkeys import passkeys_feature
from server.composition.log_ins.rules import LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores


def log_in_features(
    resources: Resources, stores: Stores, rules: LogInRules
) -> list[Feature]:
    """Build every feature."""
    return [
        factors_feature(resources, stores, rules),
        passkeys_feature(resources, stores, rules),
        login_codes_feature(resources, stores, rules),
        identities_feature(resources, stores, rules),
        impersonation_feature(resources, stores, rules),
    ]
