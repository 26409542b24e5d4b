"""UserService, what is held about one person: messages in, messages out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.personal_data import PersonalData
from server.domain.edits import json_name
from server.rpc.call import Call


class PersonalDataServicer:
    """blatam.user.v1.UserService, as far as it is about personal data."""

    def __init__(self, data: PersonalData) -> None:
        self._data = data

    async def EraseUser(
        self, request: pb.EraseUserRequest, call: Call
    ) -> pb.EraseUserResponse:
        """Erase an account and all that is personal."""
        await self._data.erase(
            call.caller, request.id, request.current_password, call.account_limits
        )
        call.audit_without_address = call.caller.user_id == request.id
        return pb.EraseUserResponse()

    async def ExportUser(
        self, request: pb.ExportUserRequest, call: Call
    ) -> pb.ExportUserResponse:
        """Give everything that is held about one user."""
        held = await self._data.export(request.id)
        answer = pb.ExportUserResponse()
        answer.document.update(_plain(held))
        return answer


def _plain(value: Any) -> Any:
    """Give a value as ProtoJSON writes it: names in camelCase, 64 bits as text."""
    if isinstance(value, Mapping):
        return {json_name(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole or isinstance(value, UUID) else value
