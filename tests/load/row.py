"""One row of the table that `make bench` prints."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A figure and its target; `notes` has the measurements behind it."""

    name: str
    figure: float
    target: float
    better: Literal["higher", "lower", "equal"] = "higher"
    unit: str = ""
    notes: str = ""

    @property
    def ok(self) -> bool:
        """Return whether the figure reaches its target."""
        if self.better == "higher":
            return self.figure >= self.target
        if self.better == "equal":
            return self.figure == self.target
        return self.figure <= self.target
