"""The REST edge of this contract, in process or in front of another server."""
