"""A server that answers as vLLM's does where apo-bench asks it, computed by transformers token by token; also a program.

As a program it stands in for `vllm.entrypoints.openai.api_server`: `environment` makes a python that finds it there.
"""

import json
import os
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

DIES_AT = "VLLM_DOUBLE_DIES_AT"  # the variable with a file's path: the program kills itself at its third completion, if that is not there
VERSION = "0.0.test"
FAKE = "vllm/entrypoints/openai"


class Double:
    """What is served, and how it can go wrong. `requests`: the bodies of completions; `together`: the most that were asked for at once."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.names = model, tokenizer, [name]
        self.requests: list[dict[str, Any]] = []
        self.shift = 0.0  # of every log-probability
        self.vocabulary: int | None = None  # rows of its embedding, where a logit bias is refused beyond them as vLLM does
        self.without = ""  # a field that answers lack
        self.refusal: tuple[int, Any] | None = None  # of every completion
        self.dies_at: int | None = None  # this completion and all later ones get no answer
        self.marker = os.environ.get(DIES_AT)
        self.together, self._now, self._lock = 0, 0, threading.Lock()

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if path == "/health":
            return 200, ""
        if path == "/version":
            return 200, {"version": VERSION}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.names]}
        if path == "/v1/load_lora_adapter" and body:
            return 200, self.names.append(body["lora_name"])
        if path == "/v1/completions" and body:
            return self._completion(body)
        return 404, {"error": {"message": f"no {path}"}}

    def _completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        if beyond := [token for token in map(int, body.get("logit_bias", {})) if self.vocabulary is not None and token >= self.vocabulary]:
            message = f"token_id(s) {beyond} in logit_bias contain out-of-vocab token ids. Vocabulary size: {self.vocabulary}"
            return 400, {"error": {"message": message}}
        self.requests.append(body)
        self._now += 1
        self.together = max(self.together, self._now)
        time.sleep(0.001)  # lets other requests come
        try:
            with self._lock:
                number = sum("prompt_logprobs" not in request for request in self.requests)
                if self.dies_at is not None and number >= self.dies_at:
                    raise ConnectionAbortedError
                if self.marker and number == 3 and not Path(self.marker).exists():
                    Path(self.marker).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return self.refusal or (200, {"choices": [self._choice(body)]})
        finally:
            self._now -= 1

    def _choice(self, body: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        ids, sampled, logps = list(body["prompt"]), list[int](), list[float]()
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        with torch.no_grad():
            read = self.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            while len(sampled) < body["max_tokens"]:
                logits = self.model(torch.tensor([[*ids, *sampled]])).logits[0, -1]
                biased = logits.clone()
                for token, bias in body.get("logit_bias", {}).items():
                    biased[int(token)] += bias
                if body["temperature"] == 0:
                    token = int(biased.argmax())
                else:
                    token = int(torch.multinomial((biased / body["temperature"]).softmax(dim=-1), 1, generator=generator))
                sampled.append(token)
                logps.append(float(logits.log_softmax(dim=-1)[token]) + self.shift)
                text = self.tokenizer.decode(sampled)
                if token in body.get("stop_token_ids", ()) or any(stop in text for stop in body.get("stop", ())):
                    break
        choice = {"token_ids": sampled, "prompt_token_ids": ids, "logprobs": {"token_logprobs": logps}}
        if "prompt_logprobs" in body:
            rows = [{str(token): {"logprob": float(read[place, token]) + self.shift}} for place, token in enumerate(ids[1:])]
            choice["prompt_logprobs"] = [None, *rows]
        return {name: value for name, value in choice.items() if name != self.without}


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any] | None) -> None:
        try:
            status, answer = self.server.double.answer(self.path, body)
        except ConnectionAbortedError:
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Tcp(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def served(double: Double) -> Iterator[str]:
    """Its url on the loopback, within."""
    with _Tcp(("127.0.0.1", 0), _Handler) as server:
        server.double = double  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def environment(folder: Path, module: str = "from vllm_double import main\nmain()\n") -> Path:
    """The python of an environment whose vLLM is `module`, by default this file."""
    packages = folder / "packages"
    (packages / FAKE).mkdir(parents=True)
    (packages / FAKE / "api_server.py").write_text(module)
    (packages / f"vllm-{VERSION}.dist-info").mkdir()
    (packages / f"vllm-{VERSION}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}:{Path(__file__).parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def main() -> None:
    """Serve the weights of `--model` at the socket `--uds` until killed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {argument[2:].partition("=")[0]: argument.partition("=")[2] for argument in sys.argv[1:]}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(given["model"]), AutoTokenizer.from_pretrained(given["model"])
    with _Unix(given["uds"], _Handler) as server:
        server.double = Double(model.eval(), tokenizer, given["served-model-name"])  # pyright: ignore[reportAttributeAccessIssue]
        server.serve_forever()
