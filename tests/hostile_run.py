"""A run folder whose texts are all hostile, and the page of it."""

import base64
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from run_folder import SEEDS, experiment, frame, measured, write_run

from apo_bench.analysis import results
from apo_bench.clients.journal import Journal
from apo_bench.hashing import digest
from apo_bench.report.document import Report
from apo_bench.report.page import samples
from apo_bench.report.page.render import render
from apo_bench.report.report import build, report_frames
from apo_bench.types import identity

ARMS, ROUNDS, N = ("rjs", "golden_refresh", "apo_rjs"), (0, 1), 6  # N: prompts an axis
AXES = ("helpful", "<img src=x onerror=alert(1)>\u202e'\"&")
HOSTILE = (  # what responses, prompts and judges say
    "<script>alert('run')</script>",
    "</script><script>alert(2)</script><!-- <style>*{display:none}",
    "<img src=x onerror=alert(3)><svg onload=alert(4)>",
    '"><a href="javascript:alert(5)">go</a>&lt;b&gt;&amp;amp;',
    '=HYPERLINK("http://127.0.0.1:1/leak")\t\\input{/etc/passwd} $\\mathrm{x}$ ${alert(6)} `{{7*7}}`',
    "\x1b[31mred\x1b[0m \x07bell \x00null \x7f \x9b31m",
    "\u202eevil\u202c \u2066iso\u2069 \u200f mark \u061c \ufeff zero\u200bwidth \U000e0041tag",
    "עברית العربية 👩\u200d💻 नमस्ते e\u0301 ﷽",
    "two\nlines\n\n  and spaces  \r\nend",
    "",
    "a" * 400,
    "<!doctype html><meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'>",
)
LONE = "half a pair \ud83d and \udc00 </script>"  # only JSON can hold it: a manifest's notes, a judge's journal
JUDGE = "judge<b>"
IDENTITY = {"kind": "test"}


def text_of(arm: str, seed: int, round_: int, place: int) -> str:
    """Another one of HOSTILE, with its key, so that no two answers to a prompt are the same."""
    return f"{HOSTILE[(place + ARMS.index(arm) + 3 * seed + round_) % len(HOSTILE)]}|{arm} {seed} {round_} {place}"


def prompt_ids() -> list[tuple[str, str, int]]:
    """(id, axis, place) of every prompt; ids are not to be trusted either."""
    return [(f"p{place}<i>", AXES[place // N], place) for place in range(2 * N)]


def hostile_tables() -> dict[str, pd.DataFrame]:
    """Seeded scores in which apo_rjs ends higher, and texts that would like to be more than texts."""
    rng = np.random.default_rng(0)
    keys = [(arm, seed, round_) for arm in ARMS for seed in SEEDS for round_ in ROUNDS]
    scores, responses = [], []
    for arm, seed, round_ in keys:
        for id_, axis, place in prompt_ids():
            truth = float(rng.normal() + 3 * round_ * ARMS.index(arm))
            values = {
                "ground_truth": truth,
                "encoder": truth + 0.1 * float(rng.normal()),
                "proxy": float(rng.normal()),
                "length": 9.0,
                "refusal": 0.0,
            }
            scores += [(arm, seed, round_, id_, f"c{place}", axis, scorer, value) for scorer, value in values.items()]
            responses.append((arm, seed, round_, id_, text_of(arm, seed, round_, place), 9, "length" if place == 3 else "eos"))
    verdicts = []
    for id_, axis, place in prompt_ids():
        for seed in SEEDS:
            for order, choice in (("ab", "first"), ("ba", "first" if place % 3 == 0 else "second")):
                value = float((choice == "first") == (order == "ab"))
                verdicts.append(
                    ("apo_rjs", "golden_refresh", seed, seed, "1", id_, f"c{place}", axis, JUDGE, order, choice, value, None, 9.0, 9.0)
                )
    last = verdicts[-1]
    verdicts[-1] = (*last[:10], None, math.nan, "<b>timed out</b>", *last[13:])
    reward_models = [
        (arm, seed, round_, axis, metric, 0.7 + 0.01 * seed, 0.6, 0.8, 50)
        for arm, seed, round_ in keys
        for axis in (*AXES, "all")
        for metric in ("accuracy_human", "accuracy_golden", "ece")
    ]
    reliability = [(arm, seed, round_, "all", 7, 0.7, 0.8, 0.75, 0.7, 40) for arm, seed, round_ in keys]
    reliability += [(arm, seed, round_, "all", 8, 0.8, 0.9, 0.85, 0.8, 10) for arm, seed, round_ in keys]
    ledger = [
        (arm, seed, unit, used, math.nan)
        for arm in ARMS
        for seed in SEEDS
        for unit, used in (
            ("human_pairs", 100.0),
            ("sampled_responses", 400.0),
            ("rm_updates", 30.0 + 3 * (arm == "apo_rjs")),
            ("flops", 1e12),
        )
    ]
    audit = [
        (JUDGE, axis, metric, value, 0.6, 0.9, 40, 0)
        for axis in (*AXES, "all")
        for metric, value in (("accuracy", 0.8), ("kappa", 0.5), ("attack_<u>", 0.1), ("consistency", 0.7))
    ]
    kl = {(arm, seed): (0.0, 1.0 + ARMS.index(arm) + 0.1 * seed) for arm in ARMS for seed in SEEDS}
    prompts = [
        (id_, turn, role, f"{HOSTILE[place]} {turn}")
        for id_, _, place in prompt_ids()
        for turn, role in enumerate(("user", "assistant", "user<b>"))
    ]
    return {
        "scores": frame("scores", scores),
        "responses": pd.DataFrame(responses, columns=["arm", "seed", "round", "prompt_id", "text", "tokens", "finish"]),
        "judgments": frame("judgments", verdicts),
        "judge_audit": frame("judge_audit", audit),
        "reward_models": frame("reward_models", [*reward_models, ("_floor", 0, 0, "all", "accuracy_human", 0.62, 0.5, 0.7, 50)]),
        "reliability": frame("reliability", reliability),
        "metrics": measured("kl", kl),
        "gold": frame("gold", [("encoder", -1, axis, "accuracy", 0.7, 0.6, 0.8, 80, 40) for axis in AXES]),
        "ledger": frame("ledger", ledger),
        "timings": pd.DataFrame({"arm": ["rjs", "_judge.x"], "seed": [0, -1], "measure": ["wall_s", "judge_usd"], "value": [90.0, 0.25]}),
        "prompts": pd.DataFrame(prompts, columns=["prompt_id", "turn", "role", "text"]),
    }  # fmt: skip


def said_by(id_: str, order: str, seed: int) -> str:
    return f"{HOSTILE[int(id_[1:-3])]}|{order} {seed}|{LONE}"


def hostile_run(folder: Path) -> Path:
    """A run folder every text of which is hostile, with a judge whose journal holds its words."""
    settings = experiment(compare={**experiment()["compare"], "axes": ["all"]})
    run = write_run(
        folder, hostile_tables(), settings, notes=[LONE, HOSTILE[1]], provenance=HOSTILE[2], command=HOSTILE[3],
        judges={JUDGE: {"identity": IDENTITY}}, versions={HOSTILE[2]: HOSTILE[6]}, variation={"world": HOSTILE[0]},
    )  # fmt: skip
    with Journal(run / "store" / "judging" / f"{JUDGE}.jsonl").open() as journal:
        for id_, _, place in prompt_ids():
            for seed in SEEDS:
                a, b = (text_of(arm, seed, 1, place) for arm in ("apo_rjs", "golden_refresh"))
                for order, shown in (("ab", (a, b)), ("ba", (b, a))):
                    journal.add(f"{digest(IDENTITY)}.{identity(id_, *shown)}", {"text": said_by(id_, order, seed)})
        journal.add(f"{digest({'kind': 'older'})}.{identity('p0<i>', 'x', 'y')}", {"text": "of an earlier judge"})
    return run


def report_of(folder: Path, **changes: Any) -> Report:
    """The report model of a run folder, with some of its fields changed."""
    run = results.read_run(folder)
    return replace(build(folder, run, report_frames(run)), **changes)


def written(folder: Path, *, aggregates_only: bool = False, limit: int = samples.LIMIT, **changes: Any) -> str:
    """The page of a run folder."""
    kept = None if aggregates_only else samples.read_samples(folder, results.read_run(folder), limit)
    return render(report_of(folder, **changes), kept, is_aggregate=aggregates_only)


def block_of(html: str) -> Any:
    block = re.search(r'<script type="application/gzip;base64" id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert block, "a data block of nothing but base64"
    return decoded(block[1])


def decoded(block: str) -> Any:
    """What `samples.encoded` was given."""
    return json.loads(gzip.decompress(base64.b64decode(block)))
