"""One row of the table that `make bench` prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A figure and its target, None if there is none.

    `notes` has the measurements behind it, `points` the coordinates for a plot.
    """

    name: str
    figure: float
    target: float | None
    better: Literal["higher", "lower", "equal"] = "higher"
    unit: str = ""
    notes: str = ""
    points: Sequence[tuple[float, float]] = ()

    @property
    def ok(self) -> bool:
        """Return whether the figure reaches its target."""
        if self.target is None:
            return True
        if self.better == "higher":
            return self.figure >= self.target
        if self.better == "equal":
            return self.figure == self.target
        return self.figure <= self.target
