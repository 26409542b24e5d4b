"""Log-ins with codes that are sent by e-mail."""

from __future__ import annotations

from server.composition.feature import Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources
from server.composition.stores import Stores
from server.domain.auth.login_codes import LoginCodes
from server.domain.credentials.mailed_tokens import MailedTokens
from server.domain.factors.login_codes import LoginCodeMacs, MailedLoginCodes
from server.rpc.auth.login_codes import LoginCodeServicer
from server.store.factors.login_codes import PostgresLoginCodes


def login_codes_feature(
    resources: Resources, stores: Stores, rules: LogInRules
) -> Feature:
    """Build the feature."""
    login_codes = LoginCodes(rules.log_ins, _macs(resources))
    return Feature(servicers={SERVICE: (LoginCodeServicer(login_codes),)})


def mailed_login_codes(resources: Resources, tokens: MailedTokens) -> MailedLoginCodes:
    """Build what makes codes when their e-mails are sent."""
    store = PostgresLoginCodes(resources.database)
    return MailedLoginCodes(tokens, store, _macs(resources), resources.clock)


def _macs(resources: Resources) -> LoginCodeMacs:
    return LoginCodeMacs(resources.secret.mac("login-codes"))
