"""Proxies, certificates and addresses that do not work: the reason stands in the last line, before or at the first calls, and is short."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from chat_judges import verdicts_of
from own_server import answering

from apo_bench.clients.endpoint import Endpoint
from apo_bench.clients.transport import proxy_for
from apo_bench.errors import MOST, InputError

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
