"""The sections of report.md that lay tables out: scores, rounds, reward models, gold, tuning and costs. Frames in, lines out."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from apo_bench.analysis import costs, results
from apo_bench.analysis.results import POOLED, Run
from apo_bench.formatting import count, mean_sd, number, plain, pm, rows_of, table

BESIDE = {"accuracy_human": "RM: human pairs", "accuracy_golden": "RM: golden over samples", "ece": "RM: ECE"}
LINEAR = "a linear n-gram model fitted to what the experiment's own budget grants"
DRIFT = {  # what the other diagnostics of a reward model say
    "gold_correlation": "correlation of its scores with gold's, on the policy's own answers",
    "gold_agreement": "share of pairs of the policy's own answers to one prompt that it orders as gold does; one half is chance",
    "fixed_mean": "its mean score of fixed responses, both sides of the held-out human pairs: how its level drifts",
    "fixed_sd": "the spread of those scores: how its scale drifts",
    "fixed_correlation": "correlation of those scores with the first round's reward model: how its order drifts; 1 is none",
}
NOT_THE_ANSWERS = ("kl", "kl_bound", "dev_score", "inference_flops")  # metrics told elsewhere than among properties of answers
Cells = Mapping[tuple[str, int, str], str]  # (arm, round, name) -> cell


def final(run: Run, summary: pd.DataFrame) -> list[str]:
    """Scores of every arm at its last round, by axis, with what training and answering cost."""
    axes = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    columns = [(scorer, axis) for scorer in run.scorers for axis in axes]
    scores = pd.concat([results.seed_means(run.final, axis).assign(axis=axis) for axis in axes])
    cells = {key: mean_sd(group["value"]) for key, group in scores.groupby(["arm", "scorer", "axis"])}
    start = {(one.scorer, one.axis): number(one.mean) for one in rows_of(_initial(summary))}
    ledger = results.exclude_failed(run.tables["ledger"], run.failed)
    training = ledger[ledger["unit"] == "flops"].groupby("arm")["used"].mean().to_dict()
    answering = inference_flops(summary)
    first = next((flops for (_, round_), flops in answering.items() if round_ == 0), math.nan)
    asked = ["flops per answer"] if answering else []
    rows = [["*initial policy*", "0", "", *[start.get(column, "-") for column in columns], "-", *[count(first) for _ in asked]]]
    for arm in run.arms:
        last = run.final_round.get(arm, -1)
        spent = [count(training.get(arm, math.nan)), *[count(answering.get((arm, last), math.nan)) for _ in asked]]
        seeds = str(len(run.arm_seeds.get(arm, [])))
        rows.append([f"`{arm}`", "-" if last < 0 else str(last), seeds, *[cells.get((arm, *column), "-") for column in columns], *spent])
    note = (
        "Mean over seeds ± sample SD over seeds; clusters of prompts weigh alike, as in the contrasts. `proxy` is each arm's own "
        "reward model, so its values are not comparable across arms. Training flops: all that the arm's ledger counts."
    )
    headers = ["arm", "round", "seeds", *[f"{scorer}: {axis}" for scorer, axis in columns], "training flops", *asked]
    return [*table(headers, rows), "", note]


def inference_flops(summary: pd.DataFrame) -> dict[tuple[str, int], float]:
    """Mean FLOPs per answer by arm and round, where they were counted."""
    rows = summary[(summary["scorer"] == "inference_flops") & (summary["axis"] == POOLED)]
    return {(one.arm, one.round): one.mean for one in rows_of(rows)}


def by_round(run: Run, summary: pd.DataFrame, diagnostics: pd.DataFrame) -> list[str]:
    """The scores of every round, and beside them the reward model's accuracy and calibration, all axes pooled."""
    cells = _cells(summary, "scorer")
    scorers = [*(one for one in run.scorers if one != "proxy"), *(one for one in run.scorers if one == "proxy")]
    measured = _cells(diagnostics, "metric")
    beside = [metric for metric in BESIDE if metric in set(diagnostics["metric"])]
    dev = ["dev_score"] if "dev_score" in set(summary["scorer"]) else []
    start = {one.scorer: number(one.mean) for one in rows_of(_initial(summary)) if one.axis == POOLED}
    rows = [["*initial policy*", "0", *[start.get(name, "-") for name in (*scorers, "kl")], *["-"] * len(beside), *map(start.get, dev)]]
    for arm, round_ in _rounds(summary, at_least=1):
        scored = [cells.get((arm, round_, scorer), "-") for scorer in scorers]
        bound = cells.get((arm, round_, "kl_bound"), "")
        kl = cells.get((arm, round_, "kl")) or (f"<= {bound.partition(' ')[0]}" if bound else "-")
        judged = [measured.get((arm, round_, metric), "-") for metric in beside]
        rows.append([f"`{arm}`", str(round_), *scored, kl, *judged, *[cells.get((arm, round_, name), "-") for name in dev]])
    floor = run.tables["reward_models"]
    floor = floor[(floor["arm"] == "_floor") & (floor["metric"] == "accuracy_human") & (floor["axis"] == POOLED)]["value"].mean()
    notes = ["Mean ± sample SD over seeds, all axes pooled; by axis in `by_round.csv`. KL in nats per response"]
    notes[0] += "; `<=`: an upper bound, where the arm has no weights of its own." if "kl_bound" in set(summary["scorer"]) else "."
    if beside:
        linear = "" if math.isnan(floor) else f"; {LINEAR} has {number(floor)}"
        notes.append(
            f"RM: the round's reward model. Human pairs: accuracy on held-out human pairs (falling means forgetting{linear}). Golden over "
            "samples: share of golden responses scored above the current policy's sample. ECE: expected calibration error on the human "
            f"pairs, {run.experiment.evaluation.ece_bins} equal-width bins on [0, 1]."
        )
    if dev:
        notes.append("dev_score: mean score of answers to dev prompts by a reward model that is the same for all arms of a seed.")
    headers = ["arm", "round", *scorers, "KL", *[BESIDE[metric] for metric in beside], *dev]
    return [*table(headers, [[cell or "-" for cell in row] for row in rows]), "", " ".join(notes)]


def answers(run: Run, summary: pd.DataFrame) -> list[str]:
    """What else was measured of the answers, by round."""
    known = (*run.scorers, *NOT_THE_ANSWERS)
    single = tuple(f"{gold}." for gold in run.golds)
    names = [name for name in dict.fromkeys(summary["scorer"]) if name not in known and not name.startswith(single)]
    if not names:
        return ["Nothing else was measured of the answers."]
    cells = _cells(summary, "scorer")
    rows = [
        [f"`{arm}`", str(round_), *[cells.get((arm, round_, name), "-") for name in names]] for arm, round_ in _rounds(summary, at_least=0)
    ]
    note = "Mean ± sample SD over seeds, all axes pooled. Length in tokens; refusal, unfinished and distinct-n as shares."
    return [*table(["arm", "round", *names], rows), "", note]


def chosen_on_dev(run: Run) -> list[str]:
    """How often dev chose which round, and the scores there beside those at the final round."""
    scorers = [scorer for scorer in run.scorers if scorer != "proxy"]
    means = results.seed_means(run.tables["scores"], POOLED)
    value = {(one.arm, one.seed, one.round, one.scorer): one.value for one in rows_of(means[means["scorer"].isin(scorers)])}
    rows = []
    for arm in run.arms:
        chosen = {seed: run.dev_round[arm, seed] for seed in run.arm_seeds.get(arm, []) if (arm, seed) in run.dev_round}
        often = ", ".join(f"round {round_}: {n} of {len(chosen)}" for round_, n in sorted(Counter(chosen.values()).items()))
        cells = []
        for scorer in scorers:
            last = [value.get((arm, seed, run.final_round[arm], scorer), math.nan) for seed in chosen]
            best = [value.get((arm, seed, round_, scorer), math.nan) for seed, round_ in chosen.items()]
            cells += [mean_sd(pd.Series(one, dtype=float)) for one in (last, best)]
        rows.append([f"`{arm}`", often or "-", *cells])
    headers = ["arm", "chosen", *[f"{scorer}, {at}" for scorer in scorers for at in ("final", "dev_best")]]
    rule = (
        "One rule for all arms: each seed's round of the highest dev_score among 1..R, the first among equals. Mean ± sample SD over "
        "the seeds with a dev_score, all axes pooled."
    )
    declared = run.experiment.compare.round
    return [*table(headers, rows), "", f"{rule} The declared families use `{declared}`; contrasts at the other are descriptive."]


def curves(run: Run) -> list[str]:
    """Scores against the annotation that was used, along the declared curves."""
    frame = costs.annotation_curves(run)
    scorers = list(dict.fromkeys(frame["scorer"]))
    cells = {(one.curve, one.arm, one.scorer): pm(one.mean, one.seed_sd) for one in rows_of(frame)}
    rows = [
        [plain(one.curve), f"`{one.arm}`", count(one.human_pairs), count(one.golden_responses), count(one.annotation), str(one.n_seeds)]
        + [cells.get((one.curve, one.arm, scorer), "-") for scorer in scorers]
        for one in rows_of(frame.drop_duplicates(["curve", "arm"]))
    ]
    note = "Annotation used (mean over seeds) and scores at the final round, mean ± sample SD over seeds, all axes pooled."
    return [*table(["curve", "arm", "human pairs", "golden responses", "together", "seeds", *scorers], rows), "", note]


def reward_models(run: Run, diagnostics: pd.DataFrame) -> list[str]:
    """Diagnostics beyond accuracy and calibration by round, and all of them by axis at each arm's first and last round."""
    if diagnostics.empty:
        return ["No diagnostics were recorded."]
    names = [name for name in diagnostics["metric"].unique() if name not in BESIDE]
    names = [*[name for name in DRIFT if name in names], *[name for name in names if name not in DRIFT]]
    cells = _cells(diagnostics, "metric")
    lines = []
    if names:
        pooled = _rounds(diagnostics, at_least=0)
        rows = [[f"`{arm}`", str(round_), *[cells.get((arm, round_, name), "-") for name in names]] for arm, round_ in pooled]
        lines = [*table(["arm", "round", *names], rows), ""]
        lines += ["Mean ± sample SD over seeds, all axes pooled. Round 0 is round 1's reward model and the initial policy.", ""]
        lines += [f"- {name}: {DRIFT[name]}." for name in names if name in DRIFT]
    if len(run.axes) > 1:
        lines += ["", "### By axis, at the first and the last round", "", *_by_axis(run, diagnostics)]
    return lines


def _by_axis(run: Run, diagnostics: pd.DataFrame) -> list[str]:
    every = run.tables["reward_models"]
    floors = every[(every["arm"] == "_floor") & (every["metric"] == "accuracy_human")].groupby("axis")["value"].mean().to_dict()
    names = [name for name in (*BESIDE, "gold_agreement") if name in set(diagnostics["metric"])]
    rows = []
    for axis in run.axes:
        own = diagnostics[diagnostics["axis"] == axis]
        cells = _cells(own, "metric", axis)
        for arm in run.arms:
            rounds = [round_ for one, round_ in _rounds(own, at_least=1, axis=axis) if one == arm]
            for round_ in sorted({rounds[0], rounds[-1]}) if rounds else ():
                floor = number(floors.get(axis, math.nan))
                rows.append([plain(axis), f"`{arm}`", str(round_), *[cells.get((arm, round_, name), "-") for name in names], floor])
    headers = ["axis", "arm", "round", *[BESIDE.get(name, name) for name in names], "n-gram floor"]
    return [*table(headers, rows), "", f"The floor is the accuracy on human pairs of {LINEAR}."]


def gold(run: Run) -> list[str]:
    """How good the gold models are, and how far they followed the truth."""
    rows = []
    for one in rows_of(results.gold_accuracy(run)):
        spread = f"{number(one.seed_low)} to {number(one.seed_high)} ({count(one.n_gold_seeds)} seeds)"
        verdict = results.uninformative_gold(run, str(one.gold), str(one.axis)) or "better than chance"
        interval = f"{number(one.ci_low)} to {number(one.ci_high)}"
        sizes = [count(one.n_pairs), count(one.n_clusters)]
        rows.append([str(one.gold), plain(one.axis), number(one.value), interval, spread, *sizes, number(one.floor), plain(verdict)])
    headers = ["gold", "axis", "accuracy", "95 % interval", "single seeds", "pairs", "clusters", "n-gram floor", "verdict"]
    lines = table(headers, rows) if rows else ["No gold accuracy was recorded."]
    if rows:
        lines += ["", "Accuracy of the mean score over gold seeds on held-out human pairs; interval robust to clusters of prompts."]
    agreement = results.gold_sign_agreement(run)
    if len(agreement):
        cells = [[one.gold, plain(one.axis), number(one.agree), str(one.n)] for one in rows_of(agreement)]
        lines += [
            "",
            "### How far gold can be trusted",
            "",
            *table(["gold", "axis", "same sign as the truth", "changes"], cells),
            "",
            "Of all changes between two rounds of one arm and seed in which mean ground truth moved by more than "
            f"{results.TRUSTED_CHANGE:g}, the share in which gold moved the same way. The changes are not independent of each other.",
        ]
    return lines


def tuning(run: Run) -> list[str]:
    """What was tuned for each arm, how much it mattered on dev, and what it cost."""
    rows = []
    for one in rows_of(costs.tuning_costs(run)):
        chosen = _setting(json.loads(one.chosen) or {})
        trials = str(one.trials) if one.scored == one.trials else f"{one.trials}, {one.scored} with a score"
        span = "-" if math.isnan(one.lowest) else f"{number(one.lowest)} to {number(one.highest)}"
        spent = [count(getattr(one, unit)) for unit in costs.TUNING]
        rows.append([f"`{one.arm}`", trials, plain(chosen) or "-", number(one.dev_score), span, *spent])
    tune = run.experiment.tune
    seeds = f" on seed {', '.join(map(str, tune.seeds))}" if tune else ""
    limit = f", and those that ended more than {tune.max_kl:g} nats from the initial policy set aside" if tune and tune.max_kl else ""
    note = (
        f"Every arm had equally many trials over its own grid{seeds}, judged by dev_score{limit}. What they spent, all trials together, is "
        "beside each arm's budget and is not in the arms' own costs below."
    )
    tried = []
    for arm, tuned in run.manifest["tuned"].items():
        for one in tuned.get("trials", []):
            numbers = [number(math.nan if one.get(name) is None else one[name]) for name in ("dev_score", "kl")]
            remark = "chosen" if one["setting"] == tuned.get("chosen") else plain(one.get("error") or "")
            tried.append([f"`{arm}`", plain(_setting(one["setting"])), *numbers, remark])
    lines = [*table(["arm", "trials", "chosen", "dev_score", "range over trials", *costs.TUNING], rows), "", note, ""]
    return [*lines, *table(["arm", "tried", "dev_score", "KL (nats)", ""], tried)]


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _initial(summary: pd.DataFrame) -> pd.DataFrame:
    """The initial policy's means, where all arms agree on them (a proxy of its own makes an arm differ)."""
    rounds = summary[summary["round"] == 0].groupby(["scorer", "axis"])["mean"].agg(["min", "max"]).reset_index()
    same = rounds[(rounds["max"] - rounds["min"]) <= 1e-6 * rounds[["min", "max"]].abs().max(axis=1).clip(lower=1.0)]
    return same.rename(columns={"min": "mean"})[["scorer", "axis", "mean"]]


def _cells(frame: pd.DataFrame, name: str, axis: str = POOLED) -> Cells:
    rows = rows_of(frame[frame["axis"] == axis].rename(columns={name: "named"}))
    return {(one.arm, one.round, one.named): pm(one.mean, one.seed_sd) for one in rows}


def _rounds(frame: pd.DataFrame, at_least: int, axis: str = POOLED) -> Sequence[tuple[str, int]]:
    """The arms and rounds that have rows, in the frame's order."""
    rows = frame[(frame["axis"] == axis) & (frame["round"] >= at_least)]
    return [(str(arm), int(round_)) for arm, round_ in rows[["arm", "round"]].drop_duplicates().itertuples(index=False)]
