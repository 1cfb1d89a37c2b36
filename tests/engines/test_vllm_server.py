"""A server's process: started, watched and ended, with a program in vLLM's place."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from constant_policy import LLAMA
from tiny_tokenizers import WORDS, prompt
from vllm_double import DIES_AT, VERSION, environment

from apo_bench.config.schema import PolicyModel, Recipe, Sampling, SamplingEngine
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.engines.vllm_server import Served, VllmServer, server_arguments, version_of
from apo_bench.errors import InputError, NotHere
from apo_bench.models import policy as policies
from apo_bench.types import Policy

SERVED = Served("first", "float32", rank=0, positions=32, trust_remote_code=False)
IDLE = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
path = next(argument for argument in sys.argv if argument.startswith("--uds="))[6:]
socketserver.UnixStreamServer(path, Handler).serve_forever()
"""


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_server_ends_when_it_is_told_to(tmp_path: Path) -> None:
    choice = SamplingEngine(python=str(environment(tmp_path, IDLE)))
    server = VllmServer(choice, SERVED, tmp_path, tmp_path / "log", on_cpu=True)
    assert server.client.is_ready()
    assert is_alive(server.pid)
    server.end()
    server.end()
    assert not is_alive(server.pid)


@pytest.mark.slow
def test_a_server_ends_with_its_owner(tmp_path: Path) -> None:
    """kill -9 of the owner: nothing of the server is left."""
    script = (
        "import sys, pathlib\n"
        "from apo_bench.config.schema import SamplingEngine\n"
        "from apo_bench.engines.vllm_server import Served, VllmServer\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "served = Served('first', 'float32', 0, 32, False)\n"
        "server = VllmServer(SamplingEngine(python=sys.argv[2]), served, folder, folder / 'log', on_cpu=True)\n"
        "print(server.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(environment(tmp_path, IDLE))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        assert is_alive(group)
        owner.kill()
    for _ in range(600):
        if not is_alive(group):
            return
        time.sleep(0.05)
    pytest.fail("the server outlives its owner")


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why_in_one_line(tmp_path: Path) -> None:
    choice = SamplingEngine(python=str(environment(tmp_path, "print('loading')\nraise ValueError('no kernel for heads of 3')\n")))
    with pytest.raises(InputError, match=r"vLLM did not start: ValueError: no kernel for heads of 3; see .*/log") as refusal:
        VllmServer(choice, SERVED, tmp_path, tmp_path / "log", on_cpu=True)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_killed_server_is_started_again_and_asked_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kills itself at the third of eight responses; the samples are those of one that lives. Then another policy: another server."""
    for seed, name in enumerate(("first", "second")):
        model, tokenizer = policies.new_policy({**LLAMA, "initializer_range": 0.5}, WORDS, seed)
        policies.save_model(model, tokenizer, tmp_path / "store" / "policies" / name)
    python = environment(tmp_path)
    settings = Sampling(max_new_tokens=5, batch_size=1, engine=SamplingEngine(python=str(python)))
    spec = PolicyModel(path=".", training=Recipe(learning_rate=1), sampling=settings, dtype="float32")
    prompts = tuple(prompt(text) for text in ("how do i wash it", "rinse and dry"))
    first = SamplingJob(Policy("first"), prompts, 4, settings, spec, seed=5)
    engine = TransformersEngine(tmp_path)
    expected = engine.generate(first)
    other = engine.generate(SamplingJob(Policy("second"), prompts, 4, settings, spec, seed=5))
    assert other.value != expected.value
    assert other.counts["mismatch_largest"] < 1e-5

    monkeypatch.setenv(DIES_AT, str(tmp_path / "died"))
    assert engine.generate(first) == expected
    assert (tmp_path / "died").exists()
    engine._sampler(settings.engine).end()  # pyright: ignore[reportArgumentType]


def test_the_version_is_that_of_the_environment(tmp_path: Path) -> None:
    assert version_of(str(environment(tmp_path)), None) == f"vllm {VERSION}"
    with pytest.raises(NotHere, match=r"sampling.engine.python: /nowhere/python: No such file or directory; make vllm-env"):
        version_of("/nowhere/python", None)
    with pytest.raises(NotHere, match=r"its environment has no vLLM; make vllm-env"):
        version_of("/bin/true", None)


def test_arguments_of_a_server(tmp_path: Path) -> None:
    """Of adapters of rank 4 on a GPU: the next limit that vLLM knows is 8. The user's own arguments are last, and win."""
    choice = SamplingEngine(python="python", kv_cache_gb=0.5, attention_backend="FLASH_ATTN", arguments=("--seed=3",))
    arguments = server_arguments(choice, Served("k", "bfloat16", 4, 99, trust_remote_code=True), tmp_path, "socket", on_cpu=False)
    for argument in (
        f"--model={tmp_path}", "--uds=socket", "--dtype=bfloat16", "--max-model-len=99", "--kv-cache-memory-bytes=536870912",
        "--enable-lora", "--max-lora-rank=8", "--trust-remote-code", "--attention-backend=FLASH_ATTN", "--generation-config=vllm",
    ):  # fmt: skip
        assert argument in arguments
    assert "--enforce-eager" not in arguments
    assert arguments[-1] == "--seed=3"
    assert "--enforce-eager" in server_arguments(choice, SERVED, tmp_path, "socket", on_cpu=True)


def test_which_servers_cover_which_policies() -> None:
    """More room and higher ranks do; another policy, or another precision, does not."""
    wide = Served("first", "float32", 8, 64, trust_remote_code=False)
    assert wide.covers(SERVED)
    assert not SERVED.covers(wide)
    assert not wide.covers(Served("second", "float32", 0, 32, trust_remote_code=False))
    assert not wide.covers(Served("first", "bfloat16", 0, 32, trust_remote_code=False))
