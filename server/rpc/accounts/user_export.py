"""UserService: the export of all accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.user_export import UserExport
from server.rpc.accounts.users import message
from server.rpc.call import Call


class UserExportServicer:
    """The RPC of blatam.user.v1.UserService that streams all accounts."""

    def __init__(self, export: UserExport) -> None:
        self._export = export

    async def ExportUsers(
        self, request: pb.ExportUsersRequest, call: Call
    ) -> AsyncGenerator[pb.ExportUsersResponse, None]:
        """Stream every account."""
        async with aclosing(self._export.stream(request.after_id)) as users:
            async for user in users:
                yield pb.ExportUsersResponse(user=message(user, call.caller))
