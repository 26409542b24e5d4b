"""Timestamps in messages."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from server.domain.errors import InvalidFields, Violation


def set_timestamp(timestamp: Timestamp, moment: datetime) -> None:
    """Set a timestamp; this takes a quarter of the time of FromDatetime."""
    timestamp.seconds = int(moment.timestamp())
    timestamp.nanos = moment.microsecond * 1000


def datetime_of(message: Message, field: str) -> datetime | None:
    """Return a timestamp field as a datetime, None if it is absent.

    Raises InvalidFields outside the years 1 to 9999, and for invalid nanoseconds.
    """
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        violation = Violation(
            field, "must be between the years 1 and 9999", "timestamp.range"
        )
        raise InvalidFields([violation]) from error
