"""UserService, personal data: exporting and erasing it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.api.httpbody_pb2 import HttpBody

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.personal_data import PersonalData
from server.rpc.accounts.export_document import document_parts
from server.rpc.call import Call

KIB = 1024
# of data; with the fields around it, a message stays within 256 KiB
MAX_PART_BYTES = 255 * KIB


class PersonalDataServicer:
    """The RPCs of blatam.user.v1.UserService for personal data."""

    def __init__(self, personal_data: PersonalData) -> None:
        self._personal_data = personal_data

    async def EraseUser(
        self, request: pb.EraseUserRequest, call: Call
    ) -> pb.EraseUserResponse:
        """Erase an account and all personal data."""
        await self._personal_data.erase(
            call.caller, request.id, request.current_password, call.account_limits
        )
        return pb.EraseUserResponse()

    async def ExportUser(
        self, request: pb.ExportUserRequest, call: Call
    ) -> AsyncGenerator[pb.ExportUserResponse, None]:
        """Stream the parts of one JSON document with everything stored about a user."""
        parts = document_parts(self._personal_data.export(request.id), MAX_PART_BYTES)
        async with aclosing(parts):
            async for part in parts:
                body = HttpBody(content_type="application/json", data=part.data)
                yield pb.ExportUserResponse(section=part.section, body=body)
