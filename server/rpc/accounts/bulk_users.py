"""UserService: creating and exporting many accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.user_batches import BatchRow, Outcomes, UserBatches
from server.domain.accounts.user_export import UserExport
from server.domain.accounts.users import Role, User
from server.domain.callers import Caller
from server.domain.errors import AcademyError, InvalidFields
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.interceptors.validation import broken_rules


class BulkUserServicer:
    """The RPCs of blatam.user.v1.UserService for many accounts."""

    def __init__(self, batches: UserBatches, export: UserExport) -> None:
        self._batches = batches
        self._export = export

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

    async def ExportUsers(
        self, request: pb.ExportUsersRequest, call: Call
    ) -> AsyncGenerator[pb.ExportUsersResponse, None]:
        """Stream every account."""
        async with aclosing(self._export.stream(request.after_id)) as users:
            async for user in users:
                yield pb.ExportUsersResponse(user=message(user, call.caller))


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
