"""Log lines about a service that cannot be reached: one per outage."""

import logging

_log = logging.getLogger("edge")


class OutageLog:
    """Logs the first failure of an outage, and its end."""

    def __init__(self) -> None:
        self._lasts = False

    def begin(self, cause: str) -> None:
        """Log the cause, unless the outage lasts already."""
        if not self._lasts:
            self._lasts = True
            _log.warning("the service cannot be reached, calls fail: %s", cause)

    def end(self) -> None:
        """Note that the service has responded."""
        if self._lasts:
            self._lasts = False
            _log.info("the service can be reached again")
