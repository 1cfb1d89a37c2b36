"""A vLLM server in an environment of its own: started, watched and ended by this process. No torch here."""

import json
import os
import re
import signal
import subprocess
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from apo_bench.config.schema import SamplingEngine
from apo_bench.engines.vllm_client import UNIX, ServerLost, VllmClient
from apo_bench.errors import InputError, NotHere

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows as limits
BATCHED_TOKENS = 4096  # of prompts and responses in a pass on a CPU, at least
STOP_S, POLL_S = 15.0, 0.2
ERROR = re.compile("[Ee]rror: ")
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the worker's number of threads, on no core of their own
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# Runs the server, and ends it when the input is closed: by its owner, or with it, however that ended.
LAUNCHER = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]], stdin=subprocess.DEVNULL)
def end():
    while os.read(0, 1):
        pass
    server.terminate()
    try:
        server.wait(float(sys.argv[1]))
    finally:
        os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
sys.exit(server.wait())
"""
# Packages of the environment, without importing any: a plain `vllm` has no CPU build, whose package is `vllm-cpu`.
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


@dataclass(frozen=True)
class Served:
    """What a server was started for. `name`: of whole weights, their policy's key; `rank`: the highest of adapters, 0: none;
    `positions`: the longest prompt with its response.
    """

    name: str
    dtype: str
    rank: int
    positions: int
    trust_remote_code: bool

    def covers(self, other: "Served") -> bool:
        """Whether a server that was started with this can serve the other too."""
        alike = replace(self, rank=other.rank, positions=other.positions) == other
        return alike and self.rank >= other.rank and self.positions >= other.positions


class VllmServer:
    """A server of the weights in a folder, which ends with this process.

    Construction waits until it can be asked. Raises InputError, one line, where it ends before.
    """

    def __init__(self, choice: SamplingEngine, served: Served, folder: Path, log: Path, *, on_cpu: bool) -> None:
        assert choice.python is not None
        self.served, self._log, self._scratch = served, log, TemporaryDirectory(prefix="apo-vllm-", ignore_cleanup_errors=True)
        uds = f"{self._scratch.name}/socket"
        self.client = VllmClient(f"{UNIX}{uds}")
        command = [choice.python, "-c", LAUNCHER, str(STOP_S), *server_arguments(choice, served, folder, uds, on_cpu=on_cpu)]
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._before = output.tell()
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**ENVIRONMENT, **environment},
            )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process)
        while not self.client.is_ready():
            if self._process.poll() is not None:
                self.end()
                raise InputError(f"sampling.engine: vLLM did not start: {self.last_words()}")
            time.sleep(POLL_S)

    @property
    def pid(self) -> int:
        """Its process group."""
        return self._process.pid

    def end(self) -> None:
        """End it and all that it started; again: nothing."""
        self._end()
        self._scratch.cleanup()

    def last_words(self) -> str:
        """The first error in its log, which others follow from; without one, its last line."""
        text = self._log.read_bytes()[self._before :].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if ERROR.search(line)]
        return f"{(errors[:1] or lines[-1:] or ['nothing was logged'])[0][-300:]}; see {self._log}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(2 * STOP_S)
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def server_arguments(choice: SamplingEngine, served: Served, folder: Path, uds: str, *, on_cpu: bool) -> list[str]:
    """Of vLLM's server; the user's own come last."""
    # A prompt that is read in parts rewinds its request's generator, which one of a CPU cannot: the server would die.
    unchunked = ["--no-enable-chunked-prefill", f"--max-num-batched-tokens={max(served.positions, BATCHED_TOKENS)}"]
    rank = next((rank for rank in LORA_RANKS if rank >= served.rank), LORA_RANKS[-1])
    return [
        f"--model={folder}", f"--uds={uds}", f"--served-model-name={served.name}", f"--dtype={served.dtype}",
        f"--max-model-len={served.positions}", f"--kv-cache-memory-bytes={int(choice.kv_cache_gb * 2**30)}",
        "--generation-config=vllm", "--logprobs-mode=raw_logprobs", "--disable-uvicorn-access-log",
        *(["--enforce-eager", *unchunked] if on_cpu else []),
        *(["--enable-lora", f"--max-lora-rank={rank}"] if served.rank else []),
        *(["--trust-remote-code"] if served.trust_remote_code else []),
        *([] if choice.attention_backend == "auto" else [f"--attention-backend={choice.attention_backend}"]),
        *choice.arguments,
    ]  # fmt: skip


@cache
def version_of(python: str | None, url: str | None) -> str:
    """The version of vLLM that samples. Raises NotHere, one line, for a python without vLLM and for a url where no server answers."""
    if url is not None:
        try:
            return f"vllm {VllmClient(url).version()}"
        except ServerLost as error:
            raise NotHere(f"sampling.engine.url: no vLLM server answers: {error}") from None
    command, where = [str(python), "-c", VERSIONS], f"sampling.engine.python: {python}"
    try:
        installed = json.loads(subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True).stdout)
        return next(f"{name} {installed[name]}" for name in ("vllm", "vllm-cpu") if name in installed)
    except OSError as error:
        raise NotHere(f"{where}: {error.strerror}; make vllm-env builds an environment") from None
    except (subprocess.CalledProcessError, ValueError, StopIteration):
        raise NotHere(f"{where}: its environment has no vLLM; make vllm-env builds an environment") from None
