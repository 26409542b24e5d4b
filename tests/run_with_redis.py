"""Run a command, such as pytest, with a TEST_REDIS_URL of several nodes.

python -m tests.run_with_redis cluster pytest tests/e2e tests/rpc
python -m tests.run_with_redis sentinel pytest tests/e2e tests/rpc
"""

import os
import subprocess
import sys

from tests.valkey_nodes import valkey_cluster, valkey_replication


def main(mode: str, *command: str) -> int:
    """Start the nodes, run the command, and return its exit code."""
    servers = valkey_cluster() if mode == "cluster" else valkey_replication()
    with servers as started:
        environment = {**os.environ, "TEST_REDIS_URL": started.url}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
