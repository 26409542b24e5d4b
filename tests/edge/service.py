"""Services for the tests of the edge: descriptors and ports."""

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from google.api import (
    annotations_pb2,
    field_behavior_pb2,
    http_pb2,
    httpbody_pb2,
)
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_tools import protoc

from buf.validate import validate_pb2
from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import CallError, Metadata, Reply, StreamReply

VECTORS = Path(__file__).parent / "vectors"


def _known() -> bytes:
    """Return the files that proto files of tests may import, as descriptors."""
    made = descriptor_pb2.FileDescriptorSet()
    for module in (
        descriptor_pb2,
        any_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        struct_pb2,
        timestamp_pb2,
        wrappers_pb2,
        http_pb2,
        annotations_pb2,
        field_behavior_pb2,
        httpbody_pb2,
        validate_pb2,
    ):
        module.DESCRIPTOR.CopyToProto(made.file.add())
    return made.SerializeToString()


@cache
def compiled(source: str) -> bytes:
    """Return the descriptor set of a proto file, with imports and comments."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test.proto").write_text(source)
        Path(folder, "known.binpb").write_bytes(_known())
        out = Path(folder, "out.binpb")
        includes = [f"-I{folder}", f"--descriptor_set_in={folder}/known.binpb"]
        options = ["--include_imports", "--include_source_info"]
        done = protoc.main(
            ["", *includes, *options, f"--descriptor_set_out={out}", "test.proto"]
        )
        assert done == 0, source
        return out.read_bytes()


@cache
def vector_files() -> bytes:
    """Return the descriptor set of vectors.v1.Vector."""
    source = (VECTORS / "schema.proto").read_text()
    unused = 'import "google/protobuf/empty.proto";\n'
    return compiled(source.replace(unused, ""))


@cache
def _pool(files: bytes) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(files).file:
        pool.Add(file)
    return pool


def message_class(files: bytes, name: str) -> type[Message]:
    """Return the class of a message type of a descriptor set."""
    return GetMessageClass(_pool(files).FindMessageTypeByName(name))


Vector = message_class(vector_files(), "vectors.v1.Vector")


def vector(**fields: Any) -> Message:
    """Return a Vector."""
    return Vector(**fields)


def as_json(message: Message) -> Any:
    """Return a message's JSON without defaults."""
    return json_format.MessageToDict(message)


def rule(**options: Any) -> Any:
    """Return a google.api.http rule."""
    return json_format.ParseDict(options, http_pb2.HttpRule())


def bind(options: descriptor_pb2.MethodOptions, made: Any) -> None:
    """Annotate a method."""
    http: Any = annotations_pb2.http
    options.Extensions[http].CopyFrom(made)


def routes(
    rules: Sequence[dict[str, Any]],
    *,
    request: str = "vectors.v1.Vector",
    response: str = "vectors.v1.Vector",
    streams: bool = False,
    files: bytes | None = None,
    names: Sequence[str] = (),
) -> bytes:
    """Return a descriptor set with service `t.S`; its method M<i> has the i-th rule."""
    made = descriptor_pb2.FileDescriptorSet.FromString(files or vector_files())
    known = {file.name for file in made.file}
    for module in (http_pb2, annotations_pb2, httpbody_pb2):
        if module.DESCRIPTOR.name not in known:
            if "google/protobuf/descriptor.proto" not in known:
                descriptor_pb2.DESCRIPTOR.CopyToProto(made.file.add())
                known.add("google/protobuf/descriptor.proto")
            if "google/protobuf/any.proto" not in known:
                any_pb2.DESCRIPTOR.CopyToProto(made.file.add())
                known.add("google/protobuf/any.proto")
            module.DESCRIPTOR.CopyToProto(made.file.add())
    file = made.file.add(name="t.proto", package="t", syntax="proto3")
    file.dependency.extend(f.name for f in made.file if f.name != "t.proto")
    service = file.service.add(name="S")
    for index, options in enumerate(rules):
        method = service.method.add(
            name=names[index] if names else f"M{index}",
            input_type=f".{request}",
            output_type=f".{response}",
            server_streaming=streams,
        )
        bind(method.options, rule(**options))
    return made.SerializeToString()


class Stream:
    """A StreamReply over any iterator of bytes."""

    def __init__(self, items: AsyncIterator[bytes], headers: Metadata = ()) -> None:
        self._items = items
        self.headers = headers
        self.trailers: Metadata = ()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items


class FakePort:
    """Records its calls; replies with `reply`, or with the request."""

    def __init__(
        self,
        reply: Reply | Message | CallError | None = None,
        *,
        stream: Callable[[], AsyncIterator[bytes]] | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.reply = reply
        self.stream = stream
        self.then = then
        self.calls: list[str] = []
        self.request = b""
        self.metadata: Metadata = ()
        self.timeout: float | None = None

    def _note(
        self, method: str, request: bytes, metadata: Metadata, timeout: float | None
    ) -> None:
        self.calls.append(method)
        self.request = request
        self.metadata = metadata
        self.timeout = timeout

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # the port's parameter
    ) -> Reply:
        self._note(method, request, metadata, timeout)
        if self.then:
            await self.then()
        if isinstance(self.reply, CallError):
            raise self.reply
        if isinstance(self.reply, Message):
            return Reply(self.reply.SerializeToString())
        return self.reply or Reply(request)

    def server_stream(
        self, method: str, request: bytes, *, metadata: Metadata, timeout: float | None
    ) -> StreamReply:
        self._note(method, request, metadata, timeout)
        assert self.stream
        return Stream(self.stream(), (("x-from", "stream"),))

    @property
    def message(self) -> Message:
        """The request as a Vector."""
        return Vector.FromString(self.request)


@cache
def _tls_context() -> ssl.SSLContext:
    """Return a context without certificates, which httpx reads for each client."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def client(app: FastAPI, base: str = "http://edge.test") -> httpx.AsyncClient:
    """Return a client of an application; it raises the application's exceptions."""
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url=base, verify=_tls_context())


def edge(
    rules: Sequence[dict[str, Any]],
    port: FakePort | None = None,
    settings: EdgeSettings | None = None,
    **options: Any,
) -> tuple[FakePort, httpx.AsyncClient]:
    """Return a port and a client of an application with these rules."""
    port = port or FakePort()
    if settings or options.get("files"):
        return port, client(
            create_app(routes(rules, **options), port, settings or EdgeSettings())
        )
    app, switch = kept(json.dumps(rules), json.dumps(options))
    switch.port = port
    return port, client(app)


class Switch:
    """A port that calls another one, so that applications can be cached."""

    port: FakePort

    async def unary(self, method: str, request: bytes, **rest: Any) -> Reply:
        return await self.port.unary(method, request, **rest)

    def server_stream(self, method: str, request: bytes, **rest: Any) -> StreamReply:
        return self.port.server_stream(method, request, **rest)


@cache
def kept(rules: str, options: str) -> tuple[FastAPI, Switch]:
    """Return an application, built once, and the switch to its port."""
    switch = Switch()
    return create_app(routes(json.loads(rules), **json.loads(options)), switch), switch


async def raw(
    app: FastAPI,
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    query: bytes = b"",
    peer: str = "127.0.0.1",
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Call an application with an exact path, which httpx would normalise."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query,
        "headers": list(headers),
        "client": (peer, 1),
        "server": ("edge.test", 80),
        "scheme": "http",
        "root_path": "",
    }
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if not waiting:  # the client stays connected, however long the call takes
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(event: Any) -> None:
        sent.append(event)

    await app(scope, receive, send)
    content = b"".join(event.get("body", b"") for event in sent[1:])
    return sent[0]["status"], sent[0]["headers"], content


def status(code: int, message: str, *details: Message) -> bytes:
    """Return a serialised google.rpc.Status."""
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made.SerializeToString()
