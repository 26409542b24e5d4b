"""REST in front of a gRPC server in plain FastAPI; uvicorn runs it.

It calls the server at GRPC_SERVER over one channel and converts its answer to JSON
with google.protobuf.json_format.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import grpc
from fastapi import FastAPI, Header, HTTPException, Request, Response
from google.protobuf import json_format

from blatam.user.v1.user_pb2 import GetUserRequest
from blatam.user.v1.user_pb2_grpc import UserServiceStub

HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one channel open while the app runs."""
    async with grpc.aio.insecure_channel(os.environ["GRPC_SERVER"]) as channel:
        app.state.users = UserServiceStub(channel)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/api/v1/users/{user_id}")
async def read_user(
    user_id: int, request: Request, authorization: Annotated[str, Header()]
) -> Response:
    """Read one account."""
    users: UserServiceStub = request.app.state.users
    try:
        answer = await users.GetUser(
            GetUserRequest(id=user_id),
            metadata=(("authorization", authorization),),
            timeout=30,
        )
    except grpc.aio.AioRpcError as error:
        raise HTTPException(HTTP.get(error.code(), 500), error.details()) from error
    text = json_format.MessageToJson(
        answer.user, always_print_fields_with_no_presence=True, indent=None
    )
    return Response(text, media_type="application/json")
