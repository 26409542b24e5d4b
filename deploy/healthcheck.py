"""Exits with 0 if /livez of this container answers 200: the check of the image."""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_SECONDS = 2


def connect(port: int, *, tls: bool) -> HTTPConnection:
    """Return a connection to this machine, whose certificate is for another name."""
    if not tls:
        return HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context)


def main() -> int:
    """Return the exit code."""
    port = int(os.environ["HTTP_LISTEN"].rpartition(":")[2])
    connection = connect(port, tls="TLS_CERT" in os.environ)
    try:
        connection.request("GET", "/livez")
        return int(connection.getresponse().status != 200)
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"/livez does not answer: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
