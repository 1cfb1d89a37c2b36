"""Sampling by a vLLM server: one policy served at a time, checked against transformers after each load, and measured on every artifact.

Another policy is another server process, or other adapters on the same weights: weights are never reloaded in place.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apo_bench.config.schema import PolicyModel, SamplingEngine
from apo_bench.engines.mismatch import Mismatch, chosen, mismatch
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.stored_models import StoredModels
from apo_bench.engines.vllm_client import Completion, ServerLost, VllmClient, request_settings
from apo_bench.engines.vllm_server import Served, VllmServer, version_of
from apo_bench.errors import InputError
from apo_bench.models import adapters
from apo_bench.models.adapter_folder import base_of, is_adapter, is_foreign_adapter, settings_of
from apo_bench.models.generate import Generation
from apo_bench.models.policy import save_model
from apo_bench.models.precision import resolved
from apo_bench.models.tokenize import HUMAN_TURN, ChatFormat
from apo_bench.training.encoding import response_logps
from apo_bench.types import Policy, Response

TRIES = 2  # servers that may be lost, less one, while one job is sampled
PROBES, PROBE_TOKENS = 4, 64  # prompts that are probed, and their tokens
READ_TOGETHER = 8
FULL_PRECISION, HALF_PRECISION = 0.01, 0.25  # mean |difference| in nats a token that a probe lets pass, in float32 and in 16 bits


class VllmSampler:
    """A server of its own, or one at a url, for the policies of one run folder. Raises InputError, one line, for one that cannot serve."""

    def __init__(self, choice: SamplingEngine, models: StoredModels) -> None:
        self.choice, self.models = choice, models
        self.server: VllmServer | None = None
        self._probed: set[str] = set()  # policies, by key, on the present server
        self._merged: TemporaryDirectory[str] | None = None

    def generate(self, job: SamplingJob, generation: Generation) -> tuple[tuple[Response, ...], dict[str, float]]:
        """The job's responses, prompt by prompt, and the counts spent, with the mismatch among them. `generation`: the job's, not begun.

        Raises InputError where the mean mismatch is above `sampling.max_mismatch`, and for a server that is lost twice.
        """
        n, completions = job.n, self._completions(job, generation)
        rows = [[list(completions[place, number].token_ids) for number in range(n)] for place in range(len(job.prompts))]
        responses, counts = generation.joined([[row for place in batch for row in rows[place]] for batch in generation.batches])
        measured = self._measure(job, generation, responses, [completions[divmod(place, n)] for place in range(len(responses))])
        limit = job.sampling.max_mismatch
        if limit is not None and measured.mean > limit:
            raise InputError(
                f"sampling.max_mismatch: vLLM's log-probabilities of {measured.responses} responses differ from the trained policy's by "
                f"{measured.mean:.3g} nats a token, over {limit:g}"
            )
        return tuple(responses), counts | measured.counts

    def end(self) -> None:
        """End the server that this process started, if there is one."""
        if self.server is not None:
            self.server.end()
        if self._merged is not None:
            self._merged.cleanup()
        self.server, self._merged = None, None
        self._probed.clear()

    # --- sampling --------------------------------------------------------------------------------------------------------

    def _completions(self, job: SamplingJob, generation: Generation) -> dict[tuple[int, int], Completion]:
        """By the prompt's place and the response's number. What a lost server has answered stays; another is asked for the rest."""
        rules, completions = generation.rules, dict[tuple[int, int], Completion]()
        requests = {
            (place, number): (generation.encoded[place].ids, seed)
            for place, seeds in enumerate(generation.seeds)
            for number, seed in enumerate(seeds)
        }
        lost = ""
        for _ in range(TRIES if self.choice.python else 1):
            left = {name: request for name, request in requests.items() if name not in completions}
            try:
                client, name = self._serving(job, generation)
                never = rules.pad_id if self.choice.python or client.knows(name, rules.pad_id) else None  # of ours every row is served
                settings = request_settings(job.sampling, rules.ends, HUMAN_TURN if rules.turn else None, never)
                for place, completion in client.completions(name, left, settings, job.sampling.batch_size):
                    completions[place] = completion
                return completions
            except ServerLost as error:
                words = f": {self.server.last_words()}" if self.server else ""
                lost = f"the vLLM server is lost, with {len(completions)} of {len(requests)} responses sampled: {error}{words}"
                print(f"sampling.engine: {lost}", file=sys.stderr)
                self.end()
        raise InputError(f"sampling.engine: {lost}")

    def _serving(self, job: SamplingJob, generation: Generation) -> tuple[VllmClient, str]:
        """A server of the job's policy, and the policy's name there. It is probed after a load; at a url, where anyone can load, always."""
        folder = self.models.folder("policies", job.policy)
        if self.choice.url is not None:
            client, name = VllmClient(self.choice.url), job.policy.key
            if name not in (names := client.models()):
                name = self._load_adapters(client, folder, name) if self._is_lora_request(folder) else names[0]
            self._probe(client, name, generation)
            return client, name
        client = self._own_server(job, folder)
        name = job.policy.key
        if name not in self._probed:
            if self._is_lora_request(folder):
                self._load_adapters(client, folder, name)
            self._probe(client, name, generation)
            self._probed.add(name)
        return client, name

    def _own_server(self, job: SamplingJob, folder: Path) -> VllmClient:
        """A server that this process started on the policy's weights, or on those that its adapters belong on."""
        settings, lora = resolved(job.model, self.models.device), settings_of(folder)
        longest = max(job.sampling.max_new_tokens, settings.sampling.max_new_tokens, settings.max_response_tokens)
        base = base_of(folder) if self._is_lora_request(folder) else None
        rank = max((each.rank for each in (lora, settings.training.lora) if each is not None), default=0)
        needed = Served(base or job.policy.key, settings.dtype, rank, settings.max_prompt_tokens + longest, settings.trust_remote_code)
        if self.server is None or not self.server.served.covers(needed):
            self.end()
            weights = self.models.folder("policies", Policy(base)) if base else folder
            log = self.models.run_folder / "logs" / f"vllm-{needed.name}.log"
            self.server = VllmServer(self.choice, needed, self._whole(job, weights), log, on_cpu=self.models.device == "cpu")
        return self.server.client

    def _is_lora_request(self, folder: Path) -> bool:
        """Whether vLLM reads a policy's adapters beside weights that lie in the store; adapters on adapters it does not."""
        base = base_of(folder)
        weights = None if base is None else self.models.folder("policies", Policy(base))
        return weights is not None and weights.is_dir() and not is_adapter(weights)

    def _load_adapters(self, client: VllmClient, folder: Path, name: str) -> str:
        client.load_adapter(name, folder)
        return name

    def _whole(self, job: SamplingJob, folder: Path) -> Path:
        """The folder of whole weights: of adapters on adapters, or on what is not in the store, merged."""
        if not is_adapter(folder) and not is_foreign_adapter(folder):
            return folder
        self._merged = TemporaryDirectory(prefix="apo-merged-", ignore_cleanup_errors=True)
        model, tokenizer = self.models.policy_with_adapters(job.policy, job.model, in_fp32=True)
        save_model(adapters.plain(model), tokenizer, Path(self._merged.name))
        return Path(self._merged.name)

    # --- against transformers --------------------------------------------------------------------------------------------

    def _probe(self, client: VllmClient, name: str, generation: Generation) -> None:
        """Raise InputError where the server's log-probabilities of some prompts are not the policy's: it has other weights, or reads so."""
        prompts = list(dict.fromkeys(tuple(prompt.ids[:PROBE_TOKENS]) for prompt in generation.encoded))[:PROBES]
        theirs = [client.prompt_logps(name, prompt) for prompt in prompts]
        measured = mismatch(theirs, _trainer_logps(generation, [(prompt[:1], prompt[1:]) for prompt in prompts]), [])
        limit = FULL_PRECISION if str(generation.model.dtype).endswith("float32") else HALF_PRECISION
        if measured.tokens and measured.mean > limit:
            raise InputError(
                f"sampling.engine: vLLM serves other weights than policy {name}, or computes otherwise: its log-probabilities of prompts "
                f"differ from transformers' by {measured.mean:.3g} nats a token, over {limit:g}"
            )

    def _measure(
        self, job: SamplingJob, generation: Generation, responses: Sequence[Response], completions: Sequence[Completion]
    ) -> Mismatch:
        """Of some of the responses: the sampler's log-probabilities of what it sampled beside the trainer's."""
        chat, places = ChatFormat.of(generation.tokenizer, job.model), chosen(len(responses))
        sampled = [(generation.encoded[place // job.n].ids, completions[place].token_ids) for place in places]
        reencoded = [
            tuple(chat.encode_response(response.prompt, response.text, len(response.text) + 2**10, cut=response.finish == "length"))
            != response.token_ids
            for response in (responses[place] for place in places)
        ]
        return mismatch([completions[place].logps for place in places], _trainer_logps(generation, sampled), reencoded)


def identity(choice: SamplingEngine, model: PolicyModel) -> Mapping[str, Any]:
    """What of a server can change a result; part of every key. `model`: resolved. Raises NotHere for one that is not to be had."""
    return {
        "name": choice.use,
        "version": version_of(choice.python, choice.url),
        "dtype": model.dtype,
        "attention_backend": choice.attention_backend,
        "arguments": list(choice.arguments),
    }


def _trainer_logps(generation: Generation, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
    """Log-probabilities of each sequence's second part after its first, by the model that is trained."""
    items = [{"sides": [([*start, *ids], [0] * len(start) + [1] * len(ids))], "length": len(start) + len(ids)} for start, ids in sequences]
    logps = response_logps(generation.model, items, generation.rules.pad_id, READ_TOGETHER)
    return [row[len(start) :].tolist() for [row], (start, _) in zip(logps, sequences, strict=True)]
