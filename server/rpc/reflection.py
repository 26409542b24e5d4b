"""Server reflection, for grpcurl and its like; only with DEBUG (R36)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import grpc
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection


class _Pool:
    """The default pool, which also finds a file by one of its methods."""

    def __getattr__(self, name: str) -> Any:
        return getattr(Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's
        """Give the file; `describe pkg.Service.Method` asks for the method."""
        try:
            return Default().FindFileContainingSymbol(symbol)
        except KeyError:
            return Default().FindFileContainingSymbol(symbol.rpartition(".")[0])


def reflect(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let clients ask the server for these services' descriptors."""
    names = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(
        names, server, pool=cast(DescriptorPool, _Pool())
    )
