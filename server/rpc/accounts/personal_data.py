"""UserService, what is held about one person: messages in, messages out."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.personal_data import PersonalData
from server.rpc.call import Call


class PersonalDataService:
    """blatam.user.v1.UserService, as far as it is about personal data."""

    def __init__(self, data: PersonalData) -> None:
        self._data = data

    async def EraseUser(
        self, request: pb.EraseUserRequest, call: Call
    ) -> pb.EraseUserResponse:
        """Erase an account and all that is personal."""
        await self._data.erase(
            call.caller, request.id, request.current_password, call.address
        )
        call.leaves_no_address = call.caller.user_id == request.id
        return pb.EraseUserResponse()

    async def ExportUser(
        self, request: pb.ExportUserRequest, call: Call
    ) -> pb.ExportUserResponse:
        """Give everything that is held about one user."""
        held = await self._data.export(request.id)
        answer = pb.ExportUserResponse()
        answer.document.update(
            {name: [_plain(row) for row in rows] for name, rows in held.items()}
        )
        return answer


def _plain(value: Any) -> Any:
    """Give a value as JSON has it; ids fit into its numbers."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
