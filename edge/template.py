"""The grammar of path templates: text -> segments, verb and variables.

From the comment on HttpRule in google/api/http.proto:

    Template  = "/" Segments [ Verb ] ;
    Segments  = Segment { "/" Segment } ;
    Segment   = "*" | "**" | LITERAL | Variable ;
    Variable  = "{" FieldPath [ "=" Segments ] "}" ;
    FieldPath = IDENT { "." IDENT } ;
    Verb      = ":" LITERAL ;

`**` must be the last segment. "/" alone is the root. A literal is what RFC 3986
lets stand in a path segment; the text leaves it open whether it may hold a
colon: here it may within a variable, where it cannot be taken for a verb.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"
_LITERAL = re.compile(f"{_PCHAR}+")
_INNER_LITERAL = re.compile(f"(?:{_PCHAR}|:)+")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_TOKEN = re.compile(r"\{[^{}]*\}|[^/{}]+")


class TemplateError(ValueError):
    """A path template that the grammar does not allow; says why."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A field filled from the segments `start` to `end` (None: to the last)."""

    field: str
    start: int
    end: int | None

    @property
    def single(self) -> bool:
        """Whether it is exactly one segment, which is decoded whole."""
        return self.end == self.start + 1


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; its literals are percent-decoded."""

    text: str
    segments: tuple[str | None, ...]  # None is `*`
    deep: bool  # whether `**` follows the segments
    verb: str
    variables: tuple[Variable, ...]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.segments: list[str | None] = []
        self.deep = False
        self.variables: list[Variable] = []

    def fail(self, why: str) -> TemplateError:
        return TemplateError(f"path template {self.text!r}: {why}")

    def parse(self) -> Template:
        if not self.text.startswith("/"):
            raise self.fail("it must start with '/'")
        path, verb = self._split_verb(self.text[1:])
        if path or verb:
            for part in self._parts(path):
                self._segment(part)
        names = [variable.field for variable in self.variables]
        if len(set(names)) != len(names):
            raise self.fail("a variable is bound twice")
        return Template(
            self.text, tuple(self.segments), self.deep, verb, tuple(self.variables)
        )

    def _split_verb(self, rest: str) -> tuple[str, str]:
        """Part the verb: the colon after the last slash, outside of braces."""
        colon = rest.find(":", max(rest.rfind("/"), rest.rfind("}")) + 1)
        if colon < 0:
            return rest, ""
        if not _LITERAL.fullmatch(rest[colon + 1 :]):
            raise self.fail("the verb after ':' must be a literal")
        return rest[:colon], unquote(rest[colon + 1 :], errors="surrogateescape")

    def _parts(self, path: str) -> list[str]:
        """Split at slashes outside of braces; each part is one segment."""
        parts, at = [], 0
        while True:
            match = _TOKEN.match(path, at)
            if not match:
                raise self.fail(f"a segment is expected at {path[at:]!r}")
            parts.append(match.group())
            at = match.end()
            if at == len(path):
                return parts
            if path[at] != "/":
                raise self.fail(f"'/' is expected before {path[at:]!r}")
            at += 1

    def _segment(self, part: str) -> None:
        if part.startswith("{"):
            self._variable(part[1:-1])
        else:
            self._plain(part, _LITERAL)

    def _plain(self, part: str, literal: re.Pattern[str]) -> None:
        if self.deep:
            raise self.fail("'**' must be the last segment")
        if part == "**":
            self.deep = True
        elif part == "*":
            self.segments.append(None)
        elif literal.fullmatch(part):
            self.segments.append(unquote(part, errors="surrogateescape"))
        else:
            raise self.fail(f"{part!r} is not a segment")

    def _variable(self, text: str) -> None:
        field, equals, pattern = text.partition("=")
        if not _FIELD_PATH.fullmatch(field):
            raise self.fail(f"{field!r} is not a field path")
        start = len(self.segments)
        for part in pattern.split("/") if equals else ["*"]:
            self._plain(part, _INNER_LITERAL)
        end = None if self.deep else len(self.segments)
        self.variables.append(Variable(field, start, end))


def parse(text: str) -> Template:
    """Give the parsed template; raises TemplateError that says what is wrong."""
    return _Parser(text).parse()
