"""Reads the status of a refused gRPC call."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

Detail = TypeVar("Detail", bound=Message)


@dataclass(frozen=True, slots=True)
class RpcError:
    """The status of a refused call, with its details."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status
    request_id: str

    def detail(self, kind: type[Detail]) -> Detail:
        """Return the only detail of this type."""
        detail = kind()
        matching = [
            any_
            for any_ in self.status.details
            if any_.TypeName() == kind.DESCRIPTOR.full_name
        ]
        assert len(matching) == 1
        matching[0].Unpack(detail)
        return detail

    @property
    def reason(self) -> str:
        """The machine-readable reason."""
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info.domain == "blatam.academy"
        return info.reason

    @property
    def violations(self) -> set[tuple[str, str]]:
        """The fields that break a rule, with the rule."""
        request = self.detail(error_details_pb2.BadRequest)
        return {(v.field, v.reason) for v in request.field_violations}


async def expect_rpc_error(call: Awaitable[object]) -> RpcError:
    """Await a call that must be refused and return its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(bytes(trailers["grpc-status-details-bin"]))
    assert status.code == caught.value.code().value[0]
    assert status.message == caught.value.details()
    request_id = str(trailers["x-request-id"])
    error = RpcError(caught.value.code(), status.message, status, request_id)
    assert error.detail(error_details_pb2.RequestInfo).request_id == request_id
    return error
