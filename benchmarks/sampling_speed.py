"""CPU seconds of sampling against `generate(num_return_sequences=4)`, in pairs within one run.

    OMP_NUM_THREADS=1 python benchmarks/sampling_speed.py MODEL_FOLDER PROMPTS.jsonl [--repeats 3] [--sizes 8x4x32 16x4x128]

PROMPTS.jsonl has a `prompt` a line, a transcript that ends with "Assistant:", as the HH test files have. The prompts of a size are taken
at equal distances over the file, at most 256 tokens of each. Both sides sample in one batch, at temperature 1, in turns. CPU seconds are
those of this process, medians over the repeats, and so are the tokens, which differ by chance. Target: at most half the CPU seconds.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.models import policy as policies
from apo_bench.models.generate import generate
from apo_bench.models.padding import pad
from apo_bench.models.tokenize import ChatFormat
from apo_bench.types import Message, Prompt, prompt_id


def read_prompts(path: Path) -> list[Prompt]:
    """Distinct prompts of a file."""
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
    chat = ChatFormat(tokenizer)
    ids, mask = pad([chat.encode_prompt(each, spec.max_prompt_tokens).ids for each in prompts], tokenizer.pad_token_id, "left")
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=spec.sampling.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, suppress_tokens=[tokenizer.pad_token_id],
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        rows = model.generate(ids, attention_mask=mask, generation_config=settings, num_return_sequences=n)[:, ids.shape[1] :]
    return int((rows != tokenizer.pad_token_id).sum())


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
        count, n, limit = map(int, size.split("x"))
        prompts = everything[:: len(everything) // count][:count]
        sampling = Sampling(max_new_tokens=limit, batch_size=count * n)
        spec = PolicyModel(path=".", max_prompt_tokens=256, training=Recipe(learning_rate=1), sampling=sampling)
        pairs = []
        for seed in range(given.repeats):
            before = time.process_time()
            plain_tokens = plain(model, tokenizer, prompts, n, spec, seed)
            between = time.process_time()
            tokens = generate(model, tokenizer, prompts, n, sampling, spec, seed)[1]["sampled_tokens"]
            pairs.append((between - before, plain_tokens, time.process_time() - between, tokens))
        plain_s, plain_tokens, own_s, own_tokens = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(pair[0] / pair[2] for pair in pairs)
        print(f"| {size} | {plain_s:.1f} ({plain_tokens:.0f}) | {own_s:.1f} ({own_tokens:.0f}) | {ratio:.2f} |", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
