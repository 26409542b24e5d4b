"""A small service for the tests of the edge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import CallError
from tests.edge.service import (
    FakePort,
    client,
    compiled,
    message_class,
)

SHOP = """
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";

message Item {
  int64 id = 1;
  string name = 2;
  string etag = 3;
  Size size = 4;
}
message Size { int32 wide = 1; float tall = 2; }
message GetItemRequest { int64 id = 1; }
message GetItemResponse { Item item = 1; }
message CreateItemRequest { string name = 1; string request_id = 2; }
message CreateItemResponse { Item item = 1; }
message UpdateItemRequest {
  Item item = 1;
  google.protobuf.FieldMask update_mask = 2;
}
message UpdateItemResponse { Item item = 1; }
message DeleteItemRequest { int64 id = 1; string etag = 2; }
message DeleteItemResponse {}
message ListItemsRequest {
  string prefix = 1;
  oneof page { int32 number = 2; string token = 3; }
}
message ListItemsResponse { repeated Item items = 1; string token = 2; }
message WatchItemsRequest { string resume_token = 1; }
message WatchItemsResponse { string name = 1; string resume_token = 2; }
message LoginRequest { string name = 1; string password = 2; }
message Tokens { string access = 1; string refresh = 2; int32 lives = 3; }
message Question { string text = 1; }
message LoginResponse { oneof outcome { Tokens tokens = 1; Question question = 2; } }
message RefreshRequest { string refresh = 1; }
message RefreshResponse { Tokens tokens = 1; }
message LogoutRequest {}
message LogoutResponse {}

// Sells things.
service Shop {
  // Reads an item.
  rpc GetItem(GetItemRequest) returns (GetItemResponse) {
    option (google.api.http) = {get: "/items/{id}" response_body: "item"};
  }
  rpc CreateItem(CreateItemRequest) returns (CreateItemResponse) {
    option (google.api.http) = {post: "/items" body: "*" response_body: "item"};
  }
  rpc UpdateItem(UpdateItemRequest) returns (UpdateItemResponse) {
    option (google.api.http) = {
      patch: "/items/{item.id}" body: "item" response_body: "item"
    };
  }
  rpc DeleteItem(DeleteItemRequest) returns (DeleteItemResponse) {
    option (google.api.http) = {delete: "/items/{id}"};
  }
  rpc ListItems(ListItemsRequest) returns (ListItemsResponse) {
    option (google.api.http) = {
      get: "/items" additional_bindings: {get: "/pages/{number}/items"}
    };
  }
  rpc WatchItems(WatchItemsRequest) returns (stream WatchItemsResponse) {
    option (google.api.http) = {get: "/items:watch"};
  }
  rpc Login(LoginRequest) returns (LoginResponse) {
    option (google.api.http) = {post: "/login" body: "*" response_body: "tokens"};
  }
  rpc Refresh(RefreshRequest) returns (RefreshResponse) {
    option (google.api.http) = {post: "/refresh" body: "*" response_body: "tokens"};
  }
  rpc Logout(LogoutRequest) returns (LogoutResponse) {
    option (google.api.http) = {post: "/logout" body: "*"};
  }
}
"""


def kind(name: str) -> Any:
    return message_class(compiled(SHOP), f"shop.v1.{name}")


def shop(port: FakePort, settings: EdgeSettings | None = None) -> Any:
    return client(create_app(compiled(SHOP), port, settings or EdgeSettings()))


def item(**fields: Any) -> Any:
    return kind("GetItemResponse")(item=kind("Item")(**fields))


def violations(answer: Any) -> list[str]:
    details = answer.json()["details"]
    assert details[0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    return [fault["field"] for fault in details[0]["fieldViolations"]]


def events(*names: str, fail: CallError | None = None, pause: float = 0) -> Any:
    async def items() -> AsyncIterator[bytes]:
        for name in names:
            made = kind("WatchItemsResponse")(name=name, resume_token=f"t-{name}")
            yield made.SerializeToString()
            await asyncio.sleep(pause)
        if fail:
            raise fail

    return items
