"""Server reflection for grpcurl, buf curl and others; only with DEBUG (R36).

Clients use grpc.reflection.v1, older ones v1alpha. Both have the same messages with
the same field numbers, so one servicer serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

ALPHA_NAME: str = reflection.SERVICE_NAME
V1_NAME = ALPHA_NAME.replace("v1alpha", "v1")


def reflection_v1_file() -> FileDescriptorProto:
    """Return the descriptor of grpc.reflection.v1.

    grpcio-reflection contains v1alpha only. The two differ in the package name.
    """
    alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    alpha.ClearField("options")  # v1alpha is marked as deprecated
    renamed = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    return text_format.Parse(renamed, FileDescriptorProto())


class _Pool:
    """The default descriptor pool, with grpc.reflection.v1 and look-up of methods."""

    def __init__(self) -> None:
        self._v1 = DescriptorPool()
        self._v1.Add(reflection_v1_file())

    def __getattr__(self, name: str) -> Any:
        return getattr(Default(), name)

    def FindFileByName(self, name: str) -> Any:  # noqa: N802 - protobuf's name
        """Return a file of either pool. Raises KeyError."""
        try:
            return Default().FindFileByName(name)
        except KeyError:
            return self._v1.FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - the same
        """Return the file of a message, service or method. Raises KeyError."""
        for name in (symbol, symbol.rpartition(".")[0]):
            for pool in (Default(), self._v1):
                try:
                    return pool.FindFileContainingSymbol(name)
                except KeyError:
                    continue
        raise KeyError(symbol)


def enable_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let clients read the descriptors of these services from the server."""
    names = (*services, V1_NAME, ALPHA_NAME)
    pool = cast(DescriptorPool, _Pool())
    servicer = reflection.aio.ReflectionServicer(names, pool=pool)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, methods)
            for name in (V1_NAME, ALPHA_NAME)
        )
    )
