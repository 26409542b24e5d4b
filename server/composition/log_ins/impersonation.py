"""Admins who act as users."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.domain.auth.impersonation import Impersonation
from server.rpc.auth.impersonation import ImpersonationServicer
from server.store.credentials.impersonations import PostgresImpersonations


def impersonation_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    store = PostgresImpersonations(resources.database)
    impersonation = Impersonation(rules.authentication, store)
    return Feature(servicers={SERVICE: (ImpersonationServicer(impersonation),)})
