"""Refuse functions above 50 lines in the folders named."""

import ast
import sys
from pathlib import Path

MOST = 50


def main(folders: list[str]) -> None:
    """Name each function that is too long, and exit 1 if there is one."""
    long = []
    for path in (p for folder in folders for p in Path(folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST:
                    long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    if long:
        sys.exit("\n".join([f"functions above {MOST} lines:", *long]))


if __name__ == "__main__":
    main(sys.argv[1:])
