"""What a CUDA GPU does, with random weights of real shapes: speed, memory, a simulated run, and whether a rerun gives the same bits.

    sh benchmarks/gpu/check.sh [--toy] [--out RESULTS.md] [--limit-s 320]

Nothing is read from the hub. A 3B shape (that of Llama 3.2 3B, vocabulary 128,256) needs about 75 GB; a smaller GPU gets the 1B shape. Each
part stands for itself: one that runs out of memory leaves a row that says so, and once the limit has passed the others are skipped.
Without CUDA the sizes are toys, which show that the script works; the table stays empty, since they measure nothing.
"""

import argparse
import functools
import gc
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.losses import DPOLoss, RRHFLoss, SFTLoss
from apo_bench.models import device
from apo_bench.models.generate import generate
from apo_bench.models.kl_divergence import kl
from apo_bench.models.policy import token_ids
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.provenance import versions
from apo_bench.training import encoding
from apo_bench.training.trainer import fit
from apo_bench.types import Demonstration, Group, Message, Pair, Prompt, Response

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
GIB = 2**30
SIMULATED_S = 150  # that a simulated run may take on a GPU
SPECIAL = 5  # tokens that the word tokenizer has beside its words
EMPTY = "| not run on a GPU yet | |"


@dataclass(frozen=True)
class Shape:
    """A Llama's configuration, and the lengths of prompts and responses in tokens."""

    name: str
    config: dict[str, Any]
    prompt: int
    response: int
    kl_responses: int
    sampled: int
    batches: tuple[int, ...]


def llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "tie_word_embeddings": True, "words": vocabulary - SPECIAL,
        "max_position_embeddings": 2048,
    }  # fmt: skip


LARGE = {"prompt": 150, "response": 618, "kl_responses": 64, "sampled": 64, "batches": (1, 32, 256)}  # 768 tokens together
SHAPES = {
    "3B": Shape("3B", llama(128256, 3072, 8192, 28, 24, 8), **LARGE),
    "1B": Shape("1B", llama(128256, 2048, 8192, 16, 32, 8), **LARGE),
    "toy": Shape("toy", llama(512, 64, 128, 2, 4, 2), prompt=8, response=24, kl_responses=6, sampled=8, batches=(1, 4, 8)),
}
SMALL = Shape("small", llama(4096, 256, 512, 4, 4, 4), prompt=32, response=64, kl_responses=8, sampled=32, batches=(8,))  # trained twice


def shape_for(toy: bool) -> Shape:
    """The largest whose training in fp32 with AdamW fits: 16 bytes a weight, and room for activations."""
    if toy:
        return SHAPES["toy"]
    return SHAPES["3B" if torch.cuda.get_device_properties(0).total_memory > 70 * GIB else "1B"]


# --- models and texts -------------------------------------------------------------------------------------------------------------


def model_of(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, Any]:
    """(model, tokenizer), drawn on the device: on a CPU a 3B model would take most of the time."""
    fields = dict(shape.config)
    tokenizer = word_tokenizer([f"w{number}" for number in range(fields.pop("words"))])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **token_ids(tokenizer))
    with device.seeded(seed), device.own_device():
        return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def settings(shape: Shape, **recipe: Any) -> PolicyModel:
    training = Recipe(learning_rate=1e-5, **recipe)
    sampling = Sampling(max_new_tokens=shape.sampled)
    lengths = {"max_prompt_tokens": shape.prompt, "max_response_tokens": shape.response}
    return PolicyModel(path=".", training=training, sampling=sampling, **lengths)


def words(n: int, seed: int) -> str:
    """So many tokens."""
    return " ".join(f"w{(seed * 7919 + place * 31) % 500}" for place in range(n))


def prompts(shape: Shape, n: int) -> list[Prompt]:
    texts = [words(shape.prompt, seed) for seed in range(n)]
    return [Prompt(f"p{place}", (Message("user", text),), "helpful", f"c{place}") for place, text in enumerate(texts)]


def items_for(loss: Any, shape: Shape, n: int) -> list[Any]:
    """Data that a loss reads; every response has the longest length, and RRHF's groups have four."""
    answers = [[words(shape.response, 10 * place + side) for side in range(4)] for place in range(n)]
    questions = prompts(shape, n)
    if loss.reads == "demonstrations":
        return [Demonstration(prompt, texts[0]) for prompt, texts in zip(questions, answers, strict=True)]
    if loss.reads == "pairs":
        return [Pair(prompt, texts[0], texts[1]) for prompt, texts in zip(questions, answers, strict=True)]
    return [Group(prompt, tuple(texts), (0.1, 0.4, 0.2, 0.3)) for prompt, texts in zip(questions, answers, strict=True)]


def trained(shape: Shape, loss: Any, batch_size: int, updates: int, **recipe: Any) -> tuple[Any, tuple[float, ...], list[float]]:
    """(model, losses, seconds of each update but the first): from the start of its pass over the batch to that of the next."""
    model, tokenizer = model_of(shape)
    spec = settings(shape, batch_size=batch_size, **recipe)
    items = encoding.encode_items(tokenizer, items_for(loss, shape, batch_size * updates), loss, spec)
    if loss.needs_reference:
        logps = encoding.response_logps(model, items, tokenizer.pad_token_id, batch_size)
        items = [{**item, "reference_logps": rows} for item, rows in zip(items, logps, strict=True)]
    starts: list[float] = []

    def terms(model: Any, batch: Any) -> torch.Tensor:
        if device.own_device().type == "cuda":
            torch.cuda.synchronize()
        starts.append(time.perf_counter())
        return encoding.loss_terms(model, batch, loss=loss)

    collate = functools.partial(encoding.collate, pad_id=tokenizer.pad_token_id)
    model, result = fit(model, items, collate, terms, spec.training, 0)
    return model, result.losses, [after - before for before, after in itertools.pairwise(starts[1:])]


# --- parts: each yields rows of what was measured and the value ---------------------------------------------------------------------

Rows = Iterator[tuple[str, str]]


def steps(shape: Shape) -> Rows:
    """SFT on four sequences an update, checkpointing on: bf16 autocast against fp32."""
    medians = {}
    for precision in ("bf16", "fp32"):
        device.reset_peak()
        model, losses, seconds = trained(shape, SFTLoss(), 4, 5, precision=precision, gradient_checkpointing=True)
        medians[precision] = statistics.median(seconds)
        read = 4 * (shape.prompt + shape.response) / medians[precision]
        yield (
            f"update of 4 x {shape.prompt + shape.response} tokens, {precision}",
            f"{medians[precision]:.3f} s, {read:,.0f} tokens/s, peak {gib(device.peak_bytes())}, last loss {losses[-1]:.4f}",
        )
        del model
        free()
    yield "update, fp32 / bf16", f"{medians['fp32'] / medians['bf16']:.2f} times"


def training_memory(shape: Shape) -> Rows:
    """Peak device memory of an update in bf16, checkpointing on."""
    for name, loss, batch in ((f"RRHF, 2 x 4 at {shape.prompt + shape.response}", RRHFLoss(1.0), 2), ("DPO, 4 pairs", DPOLoss(0.1), 4)):
        device.reset_peak()
        model, _, seconds = trained(shape, loss, batch, 3, precision="bf16", gradient_checkpointing=True)
        yield f"peak memory, {name}", f"{gib(device.peak_bytes())}, {statistics.median(seconds):.2f} s an update"
        del model
        free()


def divergence(shape: Shape) -> Rows:
    """KL of responses at full length, two models in bf16: memory beside the models, and that it is exact where both are one."""
    policy, tokenizer = model_of(shape, torch.bfloat16, seed=0)
    reference, _ = model_of(shape, torch.bfloat16, seed=1)
    texts = [words(shape.response - 1, seed) for seed in range(shape.kl_responses)]
    responses = [Response(prompt, text, shape.response, "eos") for prompt, text in zip(prompts(shape, len(texts)), texts, strict=True)]
    for batch_size in (1, 8):
        before = torch.cuda.memory_allocated() if device.own_device().type == "cuda" else 0
        device.reset_peak()
        start = time.perf_counter()
        nats = kl(policy, reference, tokenizer, responses, settings(shape), batch_size)
        seconds, beside = time.perf_counter() - start, device.peak_bytes() - before
        name = f"KL of {len(responses)} x {shape.response} tokens, batch {batch_size}"
        yield name, f"{gib(beside)} beside the two models, {seconds:.1f} s, mean {statistics.mean(nats):.2f} nats"
    same = kl(policy, policy, tokenizer, responses[:2], settings(shape), 2)
    yield "KL of a model from itself", f"at most {max(map(abs, same)):.2g} nats"


def sampling_speed(shape: Shape) -> Rows:
    model, tokenizer = model_of(shape, torch.bfloat16)
    for batch in shape.batches:
        sampling = Sampling(max_new_tokens=shape.sampled, batch_size=batch)
        generate(model, tokenizer, prompts(shape, 1), 1, sampling, settings(shape), 0)  # what the first call sets up
        device.reset_peak()
        start = time.perf_counter()
        responses, _ = generate(model, tokenizer, prompts(shape, -(-batch // 4)), min(4, batch), sampling, settings(shape), 1)
        speed = sum(response.tokens for response in responses) / (time.perf_counter() - start)
        yield f"sampling at batch {batch}, prompts of {shape.prompt} tokens", f"{speed:,.0f} tokens/s, peak {gib(device.peak_bytes())}"


def simulated_run(shape: Shape) -> Rows:
    """The quickstart, at tiny sizes, from the command line: what workers, precision and memory it came to."""
    with tempfile.TemporaryDirectory() as scratch:
        program = "from apo_bench.cli.main import main; main()"
        command = [sys.executable, "-c", program, "run", "experiments/quickstart.yaml", "--tiny", "--out", f"{scratch}/run"]
        start = time.perf_counter()
        limit_s = None if shape.name == "toy" else SIMULATED_S
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=limit_s)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][:200])
        manifest = json.loads((Path(scratch) / "run" / "manifest.json").read_text())
        yield "quickstart --tiny", f"{time.perf_counter() - start:.0f} s, {len(manifest['failures'])} failures"
        yield "its workers", f"`{json.dumps(manifest['hardware']['workers'])}`"
        yield "its policy", f"`{json.dumps(manifest['precision'][0]['policy'])}`"


def equality(shape: Shape) -> Rows:
    """Two fits and two samples of a small model, each in a process of its own: with torch's deterministic algorithms, and without."""
    for flag in ("default", "deterministic"):
        command = [sys.executable, __file__, "--digest", flag]
        environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if flag == "deterministic" else dict(os.environ)
        runs = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout for _ in range(2)]
        first, second = (json.loads(text.splitlines()[-1]) for text in runs)
        words_of = {name: "same bits" if first[name] == second[name] else "differ" for name in first}
        yield f"rerun, {flag} algorithms", ", ".join(f"{name}: {word}" for name, word in words_of.items())


def print_digests(flag: str) -> None:
    """A hash of trained weights, and one of sampled texts, as JSON."""
    torch.use_deterministic_algorithms(flag == "deterministic")
    hashes = {}
    for precision in ("fp32", "bf16"):
        model, _, _ = trained(SMALL, DPOLoss(0.1), 8, 4, precision=precision)
        values = b"".join(value.cpu().float().numpy().tobytes() for _, value in sorted(model.state_dict().items()))
        hashes[f"trained in {precision}"] = hashlib.sha256(values).hexdigest()
    model, tokenizer = model_of(SMALL, torch.bfloat16)
    responses, _ = generate(model, tokenizer, prompts(SMALL, 8), 4, Sampling(max_new_tokens=32), settings(SMALL), 0)
    hashes["sampled"] = hashlib.sha256("\n".join(response.text for response in responses).encode()).hexdigest()
    print(json.dumps(hashes))


# --- the page ----------------------------------------------------------------------------------------------------------------------


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def free() -> None:
    gc.collect()
    if device.own_device().type == "cuda":
        torch.cuda.empty_cache()


def measured(part: Callable[[Shape], Rows], shape: Shape) -> list[tuple[str, str]]:
    """A part's rows; where it fails, the rows before that, and one that says why."""
    rows = []
    try:
        for row in part(shape):
            print(f"{row[0]}: {row[1]}", flush=True)
            rows.append(row)
    except Exception as error:
        why = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else f"failed: {type(error).__name__}: {error}"
        rows.append((part.__name__.replace("_", " "), " ".join(why.split())[:300].replace("|", "/")))
        print(f"{rows[-1][0]}: {rows[-1][1]}", flush=True)
    free()
    return rows


def page(rows: list[tuple[str, str]], shape: Shape | None) -> str:
    """The results as markdown; without a shape, nothing was measured."""
    lines = ["# On a GPU", "", "Written by `sh benchmarks/gpu/check.sh`: random weights of a real shape, nothing from the hub.", ""]
    if shape is not None:
        facts = {**device.hardware(), "shape": shape.name, **{name: versions()[name] for name in ("torch", "transformers")}}
        lines += [f"{', '.join(f'{name} {value}' for name, value in facts.items())}.", ""]
    table = [f"| {name} | {value} |" for name, value in rows] if shape else [EMPTY]
    return "\n".join([*lines, "| | |", "|---|---|", *table, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy sizes; always so without CUDA")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--limit-s", type=float, default=320.0, help="seconds after which no further part is begun")
    parser.add_argument("--digest", choices=("default", "deterministic"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device.use_full_fp32()
    if arguments.digest:
        return print_digests(arguments.digest)
    accelerated = device.own_device().type == "cuda"
    shape, start = shape_for(arguments.toy or not accelerated), time.perf_counter()
    rows: list[tuple[str, str]] = []
    for part in (equality, training_memory, divergence, sampling_speed, steps, simulated_run):
        if time.perf_counter() - start > arguments.limit_s:
            rows.append((part.__name__.replace("_", " "), "skipped: the time was up"))
            continue
        rows += measured(part, shape)
    on_gpu = accelerated and not arguments.toy
    arguments.out.write_text(page(rows, shape if on_gpu else None), encoding="utf-8")
    print(f"{time.perf_counter() - start:.0f} s; {arguments.out}")


if __name__ == "__main__":
    main()
