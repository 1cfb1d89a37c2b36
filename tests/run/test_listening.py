"""Whether something listens, on loopback; and that a host that never answers is not waited for."""

import socket

import pytest

from apo_bench.run import listening
from apo_bench.run.listening import why_silent


def test_a_server_a_closed_port_and_no_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert why_silent("127.0.0.1", port) is None
    assert why_silent("127.0.0.1", port) == "Connection refused"
    assert why_silent("no host.invalid", 80)


def test_a_host_that_never_answers_is_waited_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped(address: tuple[str, int], timeout: float) -> None:
        assert timeout <= 2.0
        raise TimeoutError("timed out")

    monkeypatch.setattr(listening.socket, "create_connection", dropped)
    assert why_silent("10.255.255.1", 6379) == "timed out"
