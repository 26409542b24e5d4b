"""Texts of operations, read from the comments of the services."""

import re
from dataclasses import dataclass

from google.rpc import code_pb2
from protobuf import DescMethod, DescService

from edge.schema.components import comment

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_NAME = re.compile(r"\b[A-Z][A-Z_]+\b")
_CODES = dict(code_pb2.Code.items())


@dataclass(frozen=True, slots=True)
class OperationText:
    """The comment of a method in parts."""

    summary: str  # the first sentence
    details: str  # the rest, paragraphs separated by empty lines
    errors: dict[int, str]  # google.rpc.Code -> the sentences "Returns CODE if ..."


def read_text(method: DescMethod) -> OperationText:
    """Return the comment of a method in parts.

    An error that a method may return is documented by a sentence which starts with
    "Returns" and names the google.rpc.Code, as "Returns NOT_FOUND if ...".
    """
    summary, *rest = _SENTENCE_END.split(comment(method), maxsplit=1)
    details = rest[0] if rest else ""
    errors: dict[int, list[str]] = {}
    for sentence in _SENTENCE_END.split(details):
        if sentence.startswith("Returns "):
            for name in dict.fromkeys(_NAME.findall(sentence)):
                if code := _CODES.get(name):
                    errors.setdefault(code, []).append(sentence)
    return OperationText(
        summary, details, {code: " ".join(texts) for code, texts in errors.items()}
    )


def tag_name(service: DescService) -> str:
    """Return the tag of a service's operations: `User` for `UserService`."""
    return service.name.removesuffix("Service") or service.name
