"""Whether something listens at an address, before anything is sent there."""

import socket

WAIT_S = 2.0  # for an answer: a host that drops packets never gives one


def why_silent(host: str, port: int) -> str | None:
    """Why nothing is reached at an address; None where something listens. Nothing is sent."""
    try:
        socket.create_connection((host, port), timeout=WAIT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
