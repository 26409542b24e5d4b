"""Print the packages of a lock file as CycloneDX 1.6: `python .ci/sbom.py [LOCK]`.

Without LOCK, those of a production image.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def inventory(lock: str) -> dict[str, Any]:
    """Return the document for a lock file that `make lock` wrote."""
    matches = list(PACKAGE.finditer(lock))
    ends = [*(match.start() for match in matches[1:]), len(lock)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            component(match[1], match[2], lock[match.end() : end])
            for match, end in zip(matches, ends, strict=True)
        ],
    }


def component(name: str, version: str, rest: str) -> dict[str, Any]:
    """Return one package with the hashes of the files that may be installed."""
    purl = f"pkg:pypi/{name}@{version}"
    hashes = [{"alg": "SHA-256", "content": digest} for digest in HASH.findall(rest)]
    files = [{"type": "distribution", "url": purl, "hashes": hashes}]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": files,
    }


if __name__ == "__main__":
    lock = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "requirements.lock"
    json.dump(inventory(lock.read_text()), sys.stdout, indent=1)
