"""Second factors: authenticator apps, recovery codes, the second step of log-ins."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.domain.auth.second_step import SecondStep
from server.domain.factors.factors import Factors
from server.rpc.auth.factors import FactorServicer
from server.rpc.auth.second_step import SecondStepServicer
from server.store.factors.factors import PostgresFactors


def factors_feature(resources: Resources, stores: Stores, rules: LogInRules) -> Feature:
    """Build the feature."""
    second_step = SecondStep(
        authentication=rules.authentication,
        challenges=rules.challenges,
        uses=rules.uses,
        sessions=rules.uses,
        totp=rules.totp,
        passkeys=rules.passkeys,
    )
    factors = FactorServicer(factor_rules(resources, rules))
    return Feature(servicers={SERVICE: (factors, SecondStepServicer(second_step))})


def factor_rules(resources: Resources, rules: LogInRules) -> Factors:
    """Build the rules of factors."""
    return Factors(
        accounts=rules.authentication.accounts,
        store=PostgresFactors(resources.database, resources.feed),
        totp=rules.totp,
        clock=resources.clock,
        required_roles=resources.settings.mfa_required_roles,
    )
