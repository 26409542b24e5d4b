"""UserService: unsubscribing from e-mails."""

from __future__ import annotations

from blatam.user.v1 import settings_pb2 as pb
from server.domain.members.unsubscriptions import Unsubscriptions
from server.rpc.call import Call


class UnsubscriptionServicer:
    """Implements the RPC of the links in e-mails."""

    def __init__(self, unsubscriptions: Unsubscriptions) -> None:
        self._unsubscriptions = unsubscriptions

    async def Unsubscribe(
        self, request: pb.UnsubscribeRequest, call: Call
    ) -> pb.UnsubscribeResponse:
        """Turn off a kind of e-mail."""
        call.audit_user_id = await self._unsubscriptions.unsubscribe(request.token)
        return pb.UnsubscribeResponse()
