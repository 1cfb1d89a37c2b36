"""CPU seconds of sampling against `generate(num_return_sequences=4)`, in pairs within one run.

    OMP_NUM_THREADS=1 python benchmarks/sampling_speed.py MODEL_FOLDER PROMPTS.jsonl [--repeats 3] [--sizes 8x4x32 16x4x128]

PROMPTS.jsonl has a `prompt` a line, a transcript that ends with "Assistant:", as the HH test files have. The prompts of a size are taken at
equal distances over the file, at most 256 tokens of each. Both sides sample in one batch, at temperature 1, in turns; CPU seconds are those of
this process. Responses end when they end, so the token counts of the two differ by chance. Target: at most half the CPU seconds.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.models import policy as policies
from apo_bench.models.generate import generate
from apo_bench.models.tokenize import encode_prompt, pad
from apo_bench.types import Message, Prompt, prompt_id


def read_prompts(path: Path) -> list[Prompt]:
    """A single user turn each: the transcript's last one."""
    rows = (json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").split("\n") if line)
    prompts = []
    for text in dict.fromkeys(rows):
        turns = text.removesuffix("Assistant:").replace("\n\nAssistant:", "\n\nHuman:").split("\n\nHuman:")[1:]
        messages = tuple(Message("assistant" if place % 2 else "user", turn.strip()) for place, turn in enumerate(turns))
        if len(messages) % 2:
            prompts.append(Prompt(prompt_id("helpful", messages), messages, "helpful", text))
    return prompts


def plain(model: Any, tokenizer: Any, prompts: list[Prompt], n: int, spec: PolicyModel, seed: int) -> int:
    """transformers' `generate`, every prompt n times in one batch. Returns the sampled tokens."""
    ids, mask = pad([encode_prompt(tokenizer, each, "", spec.max_prompt_tokens).ids for each in prompts], tokenizer.pad_token_id, "left")
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=spec.sampling.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, suppress_tokens=[tokenizer.pad_token_id],
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        rows = model.generate(ids, attention_mask=mask, generation_config=settings, num_return_sequences=n)[:, ids.shape[1] :]
    return int((rows != tokenizer.pad_token_id).sum())


def measured(work: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds, and the tokens that the work sampled."""
    before = time.process_time()
    tokens = work()
    return time.process_time() - before, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["8x4x32", "16x4x128"], help="prompts x responses x tokens")
    given = parser.parse_args()
    policies.use_one_thread()
    model, tokenizer = policies.load_policy(given.model)
    model.eval()
    everything = read_prompts(given.prompts)
    print("| prompts x responses x tokens | generate, CPU-s (tokens) | ours, CPU-s (tokens) | ratio |\n|---|---|---|---|")
    for size in given.sizes:
        count, n, tokens = map(int, size.split("x"))
        prompts = everything[:: len(everything) // count][:count]
        sampling = Sampling(max_new_tokens=tokens, batch_size=count * n)
        spec = PolicyModel(path=".", max_prompt_tokens=256, training=Recipe(learning_rate=1), sampling=sampling)
        theirs, ours = [], []
        for repeat in range(given.repeats):
            theirs.append(measured(lambda repeat=repeat: plain(model, tokenizer, prompts, n, spec, repeat)))  # noqa: B023
            ours.append(
                measured(lambda repeat=repeat: generate(model, tokenizer, prompts, n, sampling, spec, repeat)[1]["sampled_tokens"])  # noqa: B023
            )
        ratio = statistics.median(them[0] / us[0] for them, us in zip(theirs, ours, strict=True))
        columns = (
            " | ".join(f"{statistics.median(part):.{digits}f}" for part, digits in zip(zip(*side), (1, 0))) for side in (theirs, ours)
        )
        print(f"| {size} | " + " | ".join("{} ({})".format(*column.split(" | ")) for column in columns) + f" | {ratio:.2f} |", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
