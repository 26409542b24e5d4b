"""Runs a coroutine until it first waits: a call that never waits needs no timer."""

from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Waiting(Generic[Result]):
    """The rest of a coroutine that waits for something; await it in the same task."""

    __slots__ = ("_awaited", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Result], awaited: object) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Result]:
        """Do what `yield from` does (PEP 380), after its first step."""
        awaited = self._awaited
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # cancellation, too, is the coroutine's
                resume = partial(self._coroutine.throw, error)
            else:
                resume = partial(self._coroutine.send, sent)
            try:
                awaited = resume()
            except StopIteration as end:
                result: Result = end.value
                return result


def start(coroutine: Coroutine[Any, Any, Result]) -> Result | Waiting[Result]:
    """Run a coroutine to its end or to where it first waits, and raise its error.

    A warm call ends at once, so that what surrounds waiting (a deadline, a guard) is
    made for the others only: 12 Python calls less.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    return Waiting(coroutine, awaited)
