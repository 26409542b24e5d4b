"""Errors that a retry may resolve: limits, load, outages, deadlines."""

from __future__ import annotations

import math
from datetime import timedelta

from server.domain.errors.base import AcademyError, ErrorKind


class ResumeTokenExpired(AcademyError):
    """The changes after this resume token are no longer stored."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "RESUME_TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__(
            "the changes after this resume token are no longer stored: "
            "export all users again and start a new stream"
        )


class RateLimited(AcademyError):
    """The caller exceeded a rate limit."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"

    def __init__(self, limit: int, per: timedelta, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            f"too many calls: at most {limit} in {per.total_seconds():g} s; "
            f"retry in {seconds} s",
            metadata={"limit": str(limit), "per_seconds": f"{per.total_seconds():g}"},
            retry_after=retry_after,
        )


class Overloaded(AcademyError):
    """The queue is too long to respond in time."""

    kind = ErrorKind.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            f"the service is overloaded: retry in {seconds} s",
            retry_after=retry_after,
        )


class StoreUnavailable(AcademyError):
    """A store does not respond. Raise it `from` the cause, for the log."""

    kind = ErrorKind.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "the database does not respond: retry in 1 s",
            retry_after=timedelta(seconds=1),
        )


class ServerStopping(AcademyError):
    """This process is stopping and ends its streams."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SERVER_STOPPING"

    def __init__(self) -> None:
        super().__init__(
            "this server is stopping: reconnect with the last resume_token",
            retry_after=timedelta(milliseconds=100),
        )


class DeadlineExceeded(AcademyError):
    """The deadline passed before the call was complete."""

    kind = ErrorKind.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__(
            "the deadline passed before the call was complete: "
            "retry with a longer deadline"
        )
