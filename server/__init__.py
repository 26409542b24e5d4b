"""The academy's services: contracts in, Postgres and Redis behind."""

import os

# At its default level, gRPC writes a line that is not JSON for each TLS handshake that
# fails. It reads the variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
