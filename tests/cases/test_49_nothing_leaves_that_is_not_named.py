"""Credentials and names in the environment stay there: a server gets what the experiment names, whatever OpenAI's own client would send."""

import base64
import os
from pathlib import Path

import pytest
from chat_judges import verdicts_of
from own_server import answering

ANSWER = b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}'
SECRETS = {
    "OPENAI_API_KEY": "secret-1", "OPENAI_ADMIN_KEY": "secret-2", "OPENAI_ORG_ID": "secret-3", "OPENAI_PROJECT_ID": "secret-4",
    "OPENAI_CUSTOM_HEADERS": "X-Own: secret-5\nAuthorization: Bearer secret-6", "OPENAI_ORGANIZATION": "secret-7", "HF_TOKEN": "secret-8",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "NAMED_KEY"])
def test_a_request_holds_nothing_of_the_environment_but_the_key_that_is_named(
    key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NAMED_KEY", "named")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret-9\n")
    os.chmod(tmp_path / ".netrc", 0o600)
    with answering(200, ANSWER) as server:
        verdicts_of(server, tmp_path / "journal", 1, api_key_env=key)
    for head in server.heads:
        sent = " ".join([*head, *head.values()])
        assert "secret" not in sent
        assert base64.b64encode(b"me:secret-9").decode() not in sent
        assert head.get("authorization") == (f"Bearer {'named'}" if key else None)
        assert not {"openai-organization", "openai-project", "x-own", "cookie"} & set(head)
    assert len(server.heads) == 2


@pytest.mark.slow
def test_cookies_and_redirects_lead_nowhere(tmp_path: Path) -> None:
    """A second server would be told the key, and a cookie would come back."""
    with answering(200, ANSWER) as other, answering(307, b"{}", {"Location": f"{other.base_url}/chat/completions"}) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 1)
        assert not other.heads
    assert {verdict.failure for verdict in verdicts} == {"HTTP 307"}
    with answering(200, ANSWER, {"Set-Cookie": "a=b"}) as server:
        verdicts_of(server, tmp_path / "other", 3, concurrency=1)
    assert not any("cookie" in head for head in server.heads)
