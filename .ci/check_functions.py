"""Fail if a function in these folders has more than 50 lines."""

import ast
import sys
from pathlib import Path

MAX_LINES = 50


def main(folders: list[str]) -> None:
    """Print each function that is too long; exit with 1 if there is one."""
    too_long = []
    for path in (p for folder in folders for p in Path(folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_LINES:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    if too_long:
        sys.exit("\n".join([f"functions above {MAX_LINES} lines:", *too_long]))


if __name__ == "__main__":
    main(sys.argv[1:])
