"""A bare grpc.aio server: the lowest cost of a gRPC answer in this process model.

`python -m tests.load.echo_grpc FILE` answers every call with FILE's bytes and prints
its port.
"""

import asyncio
import sys
from pathlib import Path
from typing import TypeAlias

import grpc
import uvloop

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class EchoHandler(grpc.GenericRpcHandler):
    """Answers every method with constant bytes; decodes nothing."""

    def __init__(self, answer: bytes) -> None:
        async def reply(_request: bytes, _context: object) -> bytes:
            return answer

        self._handler: Handler = grpc.unary_unary_rpc_method_handler(reply)

    def service(self, _details: grpc.HandlerCallDetails) -> Handler:
        return self._handler


async def serve(answer: bytes) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((EchoHandler(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)  # noqa: T201 - the parent reads it
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(sys.argv[1]).read_bytes()))
