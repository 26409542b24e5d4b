"""UserService, many accounts at once: messages in, messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.user_batches import Outcomes, Row, UserBatches
from server.domain.accounts.user_export import UserExport
from server.domain.accounts.users import Role, User
from server.domain.callers import Caller
from server.domain.errors import AcademyError, InvalidFields
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.interceptors.validation import broken_rules


class BulkUserServicer:
    """blatam.user.v1.UserService, as far as it is about many accounts."""

    def __init__(self, batches: UserBatches, export: UserExport) -> None:
        self._batches = batches
        self._export = export

    async def BatchCreateUsers(
        self, request: pb.BatchCreateUsersRequest, call: Call
    ) -> pb.BatchCreateUsersResponse:
        """Make up to 1,000 accounts."""

        def answer(outcomes: Outcomes) -> pb.BatchCreateUsersResponse:
            told = [
                _outcome(index, outcome, call.caller)
                for index, outcome in enumerate(outcomes)
            ]
            return pb.BatchCreateUsersResponse(outcomes=told)

        rows = [_row(new) for new in request.users]
        return answer(await self._batches.create(rows, call.idempotency_record(answer)))

    async def ExportUsers(
        self, request: pb.ExportUsersRequest, call: Call
    ) -> AsyncGenerator[pb.ExportUsersResponse, None]:
        """Stream every account."""
        async with aclosing(self._export.stream(request.after_id)) as found:
            async for user in found:
                yield pb.ExportUsersResponse(user=message(user, call.caller))


def _row(new: pb.NewUser) -> Row | InvalidFields:
    if broken := broken_rules(new):
        return InvalidFields(broken)
    return Row(
        email=new.email,
        username=new.username,
        password=new.password,
        password_hash=new.password_hash,
        role=Role(new.role) if new.role else Role.STUDENT,
    )


def _outcome(
    index: int, outcome: User | AcademyError, caller: Caller
) -> pb.NewUserOutcome:
    if isinstance(outcome, User):
        return pb.NewUserOutcome(index=index, user=message(outcome, caller))
    faults = [
        pb.FieldFault(field=v.field, description=v.description, rule=v.rule)
        for v in outcome.violations
    ]
    error = pb.NewUserError(
        reason=outcome.reason, message=str(outcome), field_violations=faults
    )
    return pb.NewUserOutcome(index=index, error=error)
