"""The instructions of deploy/Dockerfile, and the names of images."""

import json
import re
import tomllib
from dataclasses import dataclass

from tests.deploy.rules import ROOT

FOLDER = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]
# A digest, or at least all numbers of a version.
PINNED = re.compile(r"[^:@]+:v?[0-9]+(\.[0-9]+)+[\w.-]*(@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, of the exec form as well."""
        if self.text.startswith("["):
            return list(map(str, json.loads(self.text)))
        return self.text.split()


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage; the first one is FROM."""
    text = (FOLDER / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, rest.strip()))
    return found


def image_environment() -> dict[str, str]:
    """Return the settings that the image sets."""
    words = next(i.words for i in stages()[-1] if i.name == "ENV")
    pairs = (word.split("=", 1) for word in words)
    return {name: value for name, value in pairs if name != "PATH"}


def listening_ports() -> dict[str, int]:
    """Return the ports of the listeners in the image, by setting."""
    return {
        name: int(value.rpartition(":")[2])
        for name, value in image_environment().items()
        if name.endswith("_LISTEN")
    }
