"""Tokens a second of sampling by vLLM beside ours, in pairs within one run.

    OMP_NUM_THREADS=1 python benchmarks/sampling_vllm.py MODEL_FOLDER PROMPTS.jsonl .venv-vllm/bin/python [--repeats 3] [--sizes 16x4x64]

PROMPTS.jsonl as for `sampling_speed.py`. Both sides sample the same prompts at temperature 1, in turns, on the threads that OMP_NUM_THREADS
says; vLLM is asked over its socket, one request a response, `batch_size` of them at a time, as in a run. CPU seconds are those of this
process or of all of the server's, its start apart; tokens are those sampled, which differ by chance. Medians over the repeats.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sampling_speed import read_prompts

from apo_bench.config.schema import PolicyModel, Recipe, Sampling, SamplingEngine
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.models import policy as policies
from apo_bench.types import Policy

HEAD = "| prompts x responses x tokens | | tokens/s | tokens / CPU-s | to ours, wall | to ours, CPU |\n|---|---|---|---|---|---|"
TICKS = os.sysconf("SC_CLK_TCK")


def group_cpu_s(group: int) -> float:
    """CPU seconds of all processes of a group."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:  # it ended meanwhile
            continue
        ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("python", help="of an environment with vLLM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["16x4x64"], help="prompts x responses x tokens")
    given = parser.parse_args()
    policies.use_one_thread()
    everything = read_prompts(given.prompts)
    with tempfile.TemporaryDirectory() as folder:
        engine = TransformersEngine(Path(folder))
        choice = SamplingEngine(python=given.python, kv_cache_gb=2.0)
        recipe = Recipe(learning_rate=1)
        policies.save_model(*policies.load_policy(given.model), Path(folder) / "store" / "policies" / "policy")
        sampler = engine._sampler(choice)
        print(HEAD)
        for size in given.sizes:
            count, n, limit = map(int, size.split("x"))
            step = len(everything) // count
            prompts = tuple(everything[::step][:count])
            sampling = Sampling(max_new_tokens=limit, batch_size=count * n, engine=choice)
            spec = PolicyModel(path=".", training=recipe, sampling=sampling, dtype="float32", max_response_tokens=limit)
            rates: dict[str, list[tuple[float, float]]] = {"ours": [], "vLLM": []}
            warm = engine.generation(job := SamplingJob(Policy("policy"), prompts, n, sampling, spec, seed=-1))
            sampler._completions(job, warm)  # its start, and its first kernels
            assert sampler.server is not None
            group = sampler.server.pid

            def timed(
                side: str, sample: Callable[[], int], cpu_s: Callable[[], float], rates: dict[str, list[tuple[float, float]]]
            ) -> None:
                cpu, wall = cpu_s(), time.perf_counter()
                tokens = sample()
                rates[side].append((tokens / (time.perf_counter() - wall), tokens / (cpu_s() - cpu)))

            for seed in range(given.repeats):
                prompts = tuple(everything[seed + 1 :: step][:count])  # not those before, whose prefixes the server still has
                job = SamplingJob(Policy("policy"), prompts, n, sampling, spec, seed)
                generation = engine.generation(job)

                def ours(generation=generation) -> int:
                    return sum(len(row) for number in range(len(generation.batches)) for row in generation.sample(number))

                def served(job=job, generation=generation) -> int:
                    return sum(len(completion.token_ids) for completion in sampler._completions(job, generation).values())

                timed("ours", ours, time.process_time, rates)
                timed("vLLM", served, lambda group=group: group_cpu_s(group) + time.process_time(), rates)
            base = rates["ours"]
            for side, pairs in rates.items():
                wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratios = [statistics.median(own[place] / other[place] for own, other in zip(pairs, base, strict=True)) for place in (0, 1)]
                print(f"| {size} | {side} | {wall:.0f} | {cpu:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
        sampler.end()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
