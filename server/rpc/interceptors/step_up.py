"""Refuses callers whose log-in is too old or had too few factors (RFC 9470).

An admin who acts as a user has not logged in as that user: whatever needs a stronger
log-in, or is marked in the contract, is refused, and no reauthentication helps.

Everything is decided at start but for the caller: an RPC without such a rule has no
interceptor. Services have keys, not log-ins, and are not concerned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any

from blatam.policy.v1.policy_pb2 import (
    ACCESS_PUBLIC,
    FACTOR_LEVEL_TWO,
    MethodPolicy,
)
from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.errors import ImpersonationForbidden, StepUpRequired
from server.domain.factors.methods import FactorLevel
from server.rpc.call import Call, CallCoroutine, Interceptor, Method, Proceed

_Check = Callable[[Call], None]
_UPPER = re.compile("[A-Z]")


def require_step_up(
    method: Method, required_roles: Collection[int], clock: Clock
) -> Interceptor | None:
    """Return the interceptor that checks the log-ins of one RPC's callers.

    It stands behind the access rule, which sets the caller. `required_roles` are the
    roles whose users need a second factor. None if there is nothing to check.
    """
    policy = method.policy
    if policy.access == ACCESS_PUBLIC:
        return None
    checks: list[_Check] = [_refuse_impersonation] * policy.refuses_impersonation
    if required_roles and not policy.during_enrolment:
        checks.append(_role_check(frozenset(required_roles)))
    if policy.min_factor == FACTOR_LEVEL_TWO or policy.max_auth_age:
        checks.append(_policy_check(policy, clock))
    if not checks:
        return None

    # Not a coroutine of its own: one more per call costs as much as the check.
    def intercept(call: Call, proceed: Proceed) -> CallCoroutine:
        if call.caller.user_id:
            for check in checks:
                check(call)
        return proceed(call)

    return intercept


def _role_check(required_roles: Collection[int]) -> _Check:
    def check(call: Call) -> None:
        caller = call.caller
        if caller.role in required_roles and caller.factor_level < FactorLevel.TWO:
            raise StepUpRequired(second_factor=True)

    return check


def _refuse_impersonation(call: Call) -> None:
    if call.caller.actor_id:
        raise ImpersonationForbidden(
            "an admin who acts as a user may not make this call"
        )


def _policy_check(policy: MethodPolicy, clock: Clock) -> _Check:
    needs_two = policy.min_factor == FACTOR_LEVEL_TWO
    max_age = policy.max_auth_age
    applies = _setting(policy.step_up_fields)

    def is_satisfied(caller: Caller) -> bool:
        if needs_two and caller.factor_level < FactorLevel.TWO:
            return False
        return not max_age or clock().timestamp() - caller.auth_time <= max_age

    def check(call: Call) -> None:
        caller = call.caller
        # an admin who acts as a user proves nothing about the user by a recent log-in
        if not caller.actor_id and is_satisfied(caller):
            return
        if applies and not applies(call.request):
            return
        _refuse_impersonation(call)
        raise StepUpRequired(
            second_factor=needs_two,
            max_age=timedelta(seconds=max_age) if max_age else None,
        )

    return check


def _setting(paths: Sequence[str]) -> Callable[[Any], bool] | None:
    """Return whether a request changes one of these fields; None without fields.

    A mask that is not empty decides alone. Its names are compared in snake case, and
    "*" is every field, although the rules may refuse both later.
    """
    if not paths:
        return None
    readers = [attrgetter(path) for path in paths]
    names = {path.rpartition(".")[2] for path in paths}

    def applies(request: Any) -> bool:
        mask = getattr(request, "update_mask", None)
        if mask is not None and mask.paths:
            return any(path == "*" or _names(path) & names for path in mask.paths)
        return any(read(request) for read in readers)

    return applies


def _names(path: str) -> set[str]:
    """Return the names in a path of a mask, in snake case."""
    snake = _UPPER.sub(lambda letter: f"_{letter[0].lower()}", path)
    return set(snake.strip("_").split("."))
