"""Clients generated from `academy openapi` compile strictly and work; linters agree.

Opt-in, because it installs tools from npm, Maven Central and PyPI and takes minutes:
CLIENT_TESTS=1 python -m pytest tests/generated_clients
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import open_folder
from tests.processes import FREE_PORTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GENERATOR = "org.openapitools:openapi-generator-cli:7.17.0"
PYTHON_REQUIREMENTS = (
    "mypy==1.18.2",
    "pydantic==2.12.4",
    "python-dateutil==2.9.0.post0",
    "types-python-dateutil==2.9.0.20251108",
    "typing-extensions==4.15.0",
    "urllib3==2.5.0",
)
INSTALL_SECONDS = 600
STEP_SECONDS = 180

pytestmark = pytest.mark.skipif(
    os.environ.get("CLIENT_TESTS") != "1",
    reason="installs tools from npm, Maven Central and PyPI; set CLIENT_TESTS=1",
)


def run(
    *command: str | Path, cwd: Path, seconds: int = STEP_SECONDS, **env: str
) -> str:
    """Run a command and return its output; fails the test with it on an error."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}"
    return done.stdout


def installed(*command: str | Path, cwd: Path) -> None:
    """Run an installer; skips the test if its program or its registry is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    try:
        run(*command, cwd=cwd, seconds=INSTALL_SECONDS)
    except AssertionError as error:
        pytest.skip(f"packages could not be installed: {error}")


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """Return a folder with the document, the npm tools and the client programs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name in ("package.json", "tsconfig.json", "orval.config.js"):
            shutil.copy(HERE / name, path)
        document = run(sys.executable, "-m", "server", "openapi", cwd=ROOT)
        (path / "openapi.json").write_text(document)
        installed(
            "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", cwd=path
        )
        yield path


@pytest.fixture(scope="module")
def generator(workspace: Path) -> Path:
    """Return the jar of openapi-generator, from Maven Central."""
    installed("java", "-version", cwd=workspace)
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
    options = (f"-Dartifact={GENERATOR}", f"-DoutputDirectory={workspace}")
    installed("mvn", "-q", plugin, *options, cwd=workspace)
    (jar,) = workspace.glob("openapi-generator-cli-*.jar")
    return jar


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """Return the URL of an `academy up` with its own state."""
    with open_folder() as state:
        settings = {"STATE_DIR": str(state), **FREE_PORTS}
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "up"],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            urls = (re.search(r"REST (http://\S+)", line) for line in lines)
            yield next(url[1] for url in urls if url)
        finally:
            process.terminate()
            process.communicate()


def tsc(workspace: Path, name: str) -> Path:
    """Compile one TypeScript client strictly; return its compiled program."""
    shutil.copy(HERE / "programs" / f"{name}.ts", workspace / name / "main.ts")
    config = f'{{"extends": "./tsconfig.json", "include": ["{name}/**/*.ts"]}}'
    (workspace / f"tsconfig.{name}.json").write_text(config)
    run("npx", "tsc", "-p", f"tsconfig.{name}.json", "--rootDir", ".", cwd=workspace)
    return workspace / "out" / name / "main.js"


def test_spectral_reports_nothing(workspace: Path) -> None:
    ruleset = HERE / "spectral.yaml"
    command = ("npx", "spectral", "lint", "openapi.json", "-F", "hint")
    run(*command, "-r", ruleset, cwd=workspace)


def test_redocly_reports_nothing(workspace: Path) -> None:
    output = run(
        *("npx", "redocly", "lint", "openapi.json", "--extends", "recommended"),
        cwd=workspace,
    )
    assert "Your API description is valid" in output
    assert "warning" not in output.lower().replace("deprecation warning", "")


def test_openapi_typescript_client_works(workspace: Path, base_url: str) -> None:
    folder = workspace / "openapi_typescript"
    folder.mkdir()
    run(
        "npx",
        "openapi-typescript",
        "openapi.json",
        "-o",
        folder / "schema.ts",
        cwd=workspace,
    )
    program = tsc(workspace, "openapi_typescript")
    assert "id " in run("node", program, base_url, "openapi_ts", cwd=workspace)


def test_orval_client_works(workspace: Path, base_url: str) -> None:
    run("npx", "orval", "--config", "orval.config.js", cwd=workspace, BASE_URL=base_url)
    program = tsc(workspace, "orval")
    assert "id " in run("node", program, "orval", cwd=workspace)


def test_typescript_fetch_client_works(
    workspace: Path, generator: Path, base_url: str
) -> None:
    folder = workspace / "typescript_fetch" / "client"
    command = ("java", "-jar", generator, "generate", "-g", "typescript-fetch")
    options = ("--additional-properties", "importFileExtension=.js")
    run(*command, *options, "-i", "openapi.json", "-o", folder, cwd=workspace)
    program = tsc(workspace, "typescript_fetch")
    assert "id " in run("node", program, base_url, "typescript_fetch", cwd=workspace)


def test_python_client_works(workspace: Path, generator: Path, base_url: str) -> None:
    folder = workspace / "python"
    command = ("java", "-jar", generator, "generate", "-g", "python")
    options = ("--additional-properties", "packageName=academy_client")
    run(*command, *options, "-i", "openapi.json", "-o", folder, cwd=workspace)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    installed(python, "-m", "pip", "install", "-q", *PYTHON_REQUIREMENTS, cwd=folder)
    shutil.copy(HERE / "programs" / "openapi_generator.py", folder / "main.py")
    run(python, "-m", "compileall", "-q", "academy_client", cwd=folder)
    config = folder / "mypy.ini"  # not the generated one
    config.write_text(
        "[mypy]\nstrict = True\n[mypy-academy_client.*]\nfollow_imports = silent\n"
    )
    run(python, "-m", "mypy", "--config-file", config, "main.py", cwd=folder)
    output = run(python, "main.py", base_url, "openapi_python", cwd=folder)
    assert "id " in output
