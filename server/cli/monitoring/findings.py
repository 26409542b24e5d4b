"""Finding: the result of one check of `academy doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `advice` is empty when there is nothing to do."""

    check: str
    ok: bool
    result: str
    advice: str = ""
