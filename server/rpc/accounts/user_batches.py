"""UserService: creating many accounts in one call."""

from __future__ import annotations

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.user_batches import BatchRow, Outcomes, UserBatches
from server.domain.accounts.users import Role, User
from server.domain.callers import Caller
from server.domain.errors import AcademyError, InvalidFields
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.interceptors.validation import broken_rules


class UserBatchServicer:
    """The RPC of blatam.user.v1.UserService that creates many accounts."""

    def __init__(self, batches: UserBatches) -> None:
        self._batches = batches

    async def BatchCreateUsers(
        self, request: pb.BatchCreateUsersRequest, call: Call
    ) -> pb.BatchCreateUsersResponse:
        """Create up to 1,000 accounts."""

        def response(outcomes: Outcomes) -> pb.BatchCreateUsersResponse:
            return pb.BatchCreateUsersResponse(
                outcomes=[
                    _outcome(index, outcome, call.caller)
                    for index, outcome in enumerate(outcomes)
                ]
            )

        rows = [_row(new_user) for new_user in request.users]
        record = call.idempotency_record(response)
        return response(await self._batches.create(rows, record))


def _row(new_user: pb.NewUser) -> BatchRow | InvalidFields:
    if violations := broken_rules(new_user):
        return InvalidFields(violations)
    return BatchRow(
        email=new_user.email,
        username=new_user.username,
        password=new_user.password,
        password_hash=new_user.password_hash,
        role=Role(new_user.role) if new_user.role else Role.STUDENT,
    )


def _outcome(
    index: int, outcome: User | AcademyError, caller: Caller
) -> pb.NewUserOutcome:
    if isinstance(outcome, User):
        return pb.NewUserOutcome(index=index, user=message(outcome, caller))
    error = pb.NewUserError(
        reason=outcome.reason,
        message=str(outcome),
        field_violations=[
            pb.FieldFault(field=v.field, description=v.description, rule=v.rule)
            for v in outcome.violations
        ],
    )
    return pb.NewUserOutcome(index=index, error=error)
