"""One line of the table that `make bench` prints."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """A figure beside its bar; `notes` holds what it was computed from."""

    name: str
    figure: float
    bar: float
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    notes: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether the figure reaches its bar."""
        if self.better == "higher":
            return self.figure >= self.bar
        return self.figure <= self.bar
