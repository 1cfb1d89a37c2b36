"""Proxies, certificates and addresses that do not work: the reason stands in the last line, before or at the first calls, and is short."""

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_judges import verdicts_of
from own_server import answering

from apo_bench.clients.endpoint import Endpoint
from apo_bench.clients.transport import proxy_for
from apo_bench.config.load import read_experiment
from apo_bench.config.schema import Executor
from apo_bench.errors import MOST, InputError
from apo_bench.run.executors import check_executor
from apo_bench.run.jobs import Job, run_job

ANSWER = b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}'


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        for variable in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(variable, raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_directly(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    with answering(200, ANSWER) as proxy, answering(200, ANSWER) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        verdicts_of(server, tmp_path / "journal", 1)
        assert (len(server.heads), len(proxy.heads)) == (2, 0)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "host.org"}, None),
    ],
)
def test_the_proxy_that_the_environment_names_is_used(
    variables: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_proxies(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for("https://host.org/v1") == proxy
    assert proxy_for("https://[::1]:8000/v1") is None


def test_a_proxy_of_another_kind_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy:1080")
    with pytest.raises(InputError, match="socks5:// is not supported") as caught:
        proxy_for("https://host.org/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_certificate_that_nobody_signed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    with answering(200, ANSWER, tls=self_signed(tmp_path)) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 1)
    assert {verdict.failure for verdict in verdicts} == {f"cannot connect to {server.base_url}: self-signed certificate"}


def self_signed(folder: Path) -> ssl.SSLContext:
    """The context of a server with a certificate of its own."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "30000"]
    subprocess.run([*command, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_a_message_is_cut_in_its_middle() -> None:
    """What begins and what ends a message tells most."""
    message = str(InputError(f"file.yaml: key: {'x' * 10_000_000} is wrong"))
    assert len(message) <= MOST
    assert message.startswith("file.yaml: key: xxx")
    assert message.endswith("xxx is wrong")
    assert str(InputError("a  b\nc")) == "a b c"


def test_an_endpoint_s_errors_are_short() -> None:
    with pytest.raises(InputError) as caught:
        Endpoint(f"ftp://{'x' * 100_000}", "model", None)
    assert len(str(caught.value)) <= MOST


@pytest.mark.parametrize("kind", ["arms", "judges"])
def test_a_name_that_no_file_can_have_is_refused(
    kind: str, tree: dict[str, Any], write_experiment: Callable[[dict[str, Any]], Path]
) -> None:
    """A file's name has 255 letters at most, and holds more than the arm's."""
    tree.setdefault(kind, {})["x" * 250] = {"use": "absent.py@X"}
    with pytest.raises(InputError, match=f"{kind}: name 'x") as caught:
        read_experiment(write_experiment(tree))
    assert len(str(caught.value)) <= MOST


def test_an_arm_s_error_is_short_in_every_file(tmp_path: Path) -> None:
    """Of ten million letters its progress keeps the start and the end, and so does whatever reads it."""
    job = Job(tmp_path / "experiment.yaml", "{}", tmp_path, "rjs", 0)
    message = run_job(lambda job, report: f"ValueError: {'x' * 10_000_000} is wrong", job)
    assert message is not None
    assert len(message) <= MOST
    assert json.loads(job.progress.read_text())["error"] == message
    assert message.startswith("ValueError: xxx")
    assert message.endswith("xxx is wrong")


@pytest.mark.slow
def test_output_that_its_terminal_cannot_show_is_spelled_out(tmp_path: Path) -> None:
    """PYTHONIOENCODING=ascii, and a name that is none."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", "from apo_bench.cli.main import main; main()", "check", str(tmp_path / "\u00fc\u4e2d.yaml")]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"no such file" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("address", ["no port", "http://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"^executor.address: {address}: HOST:PORT, or ray://HOST:PORT, is needed"):
        check_executor(Executor(use="ray", address=address))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_check_foresees_that_no_cluster_is_there(address: str) -> None:
    assert check_executor(Executor(use="ray", address=address)) == [f"executor.address: {address}: not reached: Connection refused"]


def test_a_cluster_that_listens_or_that_ray_looks_for_is_let_be() -> None:
    with answering(200, ANSWER) as server:
        assert check_executor(Executor(use="ray", address=server.base_url.removeprefix("http://").removesuffix("/v1"))) == []
    for address in (None, "auto"):
        assert check_executor(Executor(use="ray", address=address)) == []
