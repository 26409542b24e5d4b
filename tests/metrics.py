"""Reads the text of metrics."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one scrape."""

    text: bytes

    @property
    def samples(self) -> Iterator[Sample]:
        """All samples."""
        for family in text_string_to_metric_families(self.text.decode()):
            yield from family.samples

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels; 0 if there are none."""
        lines = [x for x in self.text.splitlines(True) if x.startswith(name.encode())]
        return sum(  # parsing every line would block the event loop for long
            sample.value
            for sample in Scrape(b"".join(lines)).samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def label_values(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {s.labels[label] for s in self.samples if s.name == name}

    @property
    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """Return the names and labels of all samples."""
        return {(s.name, tuple(sorted(s.labels.items()))) for s in self.samples}
