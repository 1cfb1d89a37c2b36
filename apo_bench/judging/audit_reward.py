"""The audit of a reward model: its scores of pairs labelled by people, and how accurate, calibrated and fond of length they are."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.config.schema import PretrainedReward
from apo_bench.config.schema_errors import input_error
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import count, csv_text, number, plain, rows_of, table
from apo_bench.hashing import path_identity
from apo_bench.judging.audit import COLUMNS, POOLED, Line, length_bias_line, mean_line, share_line
from apo_bench.judging.human_preferences import Labelled, labelled_pairs, read_labelled
from apo_bench.models.model_folder import refusing
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.package_data import find_beside
from apo_bench.stats import ece
from apo_bench.store import write_text

BINS = 10
CONFIDENCE = 0.95


def audit_reward(spec: PretrainedReward, data: Sequence[str], folder: Path, *, n: int | None = None) -> Path:
    """Score the pairs of each of `data` and write `folder`/report/audit.md and audit.csv; returns the former.

    A name in `data` is a file with people's labels, or a task, whose test pairs are used. Raises InputError for those, and for a model that
    cannot be read.
    """
    sources = [_source(name, n) for name in data]
    spec = spec.model_copy(update={"path": resolve_model(spec.path, Path.cwd())})
    scored = _score(spec, sources)
    lines, frames = [f"# Audit of the reward model {plain(Path(spec.path).name)}", ""], []
    for labelled, frame in zip(sources, scored, strict=True):
        rows = metrics(frame)
        lines += [f"## {plain(labelled.name)}", "", *_markdown(labelled, rows), ""]
        frames.append(rows.assign(data=labelled.name))
    settings = spec.model_dump(mode="json", exclude={"path", "training", "stored_dtype"})
    lines += [f"Model: `{path_identity(spec.path)}`, read with `{settings}`."]
    text = csv_text(pd.concat(frames, ignore_index=True)[["data", *COLUMNS]])
    write_text(folder / "report" / "audit.csv", text)
    write_text(folder / "report" / "audit.md", "\n".join(lines).rstrip() + "\n")
    return folder / "report" / "audit.md"


def metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """axis, metric, value, ci_low, ci_high, n, n_missing of every axis and of "all". frame: a row a pair, as `pair_frame` makes it.

    - accuracy: a higher score for the side that people prefer is right, an equal one half right. Pairs that people call a tie count in
      `human_ties` alone. `accuracy_shorter`, `accuracy_longer`, `length_bias`: as in the audit of a judge.
    - prefers_longer: share of pairs, of those with different numbers of words, in which the longer response has the higher score.
    - ties: share of pairs with equal scores.
    - ece: expected calibration error of sigmoid(|margin|) as the probability of being right, pairs with equal scores left out.
      overconfidence: mean of that probability less the share of right answers, with an interval.
    - truncated: share of pairs of which a side was cut at max_tokens.

    Intervals are robust to clusters of prompts (`clustered_share`).
    """
    axes = [*sorted(frame["axis"].unique()), POOLED]
    parts = {axis: frame if axis == POOLED else frame[frame["axis"] == axis] for axis in axes}
    return pd.DataFrame([(axis, *line) for axis, part in parts.items() for line in _metrics(part)], columns=COLUMNS)


def _metrics(rows: pd.DataFrame) -> Iterator[Line]:
    decided = rows[rows["label"] != "tie"]
    side = np.where(decided["label"] == "a", 1, -1)
    right = (1 + np.sign(decided["margin"] * side)) / 2
    longer = np.sign(decided["words_a"] - decided["words_b"]) * side  # the better response
    decided = decided.assign(right=right, longer=longer > 0)
    apart = rows[rows["words_a"] != rows["words_b"]]
    toward_longer = (1 + np.sign(apart["margin"] * (apart["words_a"] - apart["words_b"]))) / 2
    sure = 1 / (1 + np.exp(-np.abs(decided["margin"])))
    strict = decided["margin"] != 0
    error = ece(sure[strict], right[strict], BINS) if strict.any() else np.nan
    yield share_line("accuracy", decided, decided["right"], CONFIDENCE)
    yield share_line("accuracy_shorter", decided[longer < 0], decided.loc[longer < 0, "right"], CONFIDENCE)
    yield share_line("accuracy_longer", decided[longer > 0], decided.loc[longer > 0, "right"], CONFIDENCE)
    yield length_bias_line(decided[longer != 0], CONFIDENCE)
    yield share_line("prefers_longer", apart, toward_longer, CONFIDENCE)
    yield share_line("ties", rows, (rows["margin"] == 0).astype(float), CONFIDENCE)
    yield "ece", error, np.nan, np.nan, int(strict.sum()), 0
    yield mean_line("overconfidence", decided, sure - decided["right"], CONFIDENCE)
    yield share_line("human_ties", rows, (rows["label"] == "tie").astype(float), CONFIDENCE)
    yield share_line("truncated", rows, rows["truncated"].astype(float), CONFIDENCE)


def pair_frame(labelled: Labelled, scores: Sequence[float], truncated: Sequence[bool]) -> pd.DataFrame:
    """A row a pair: axis, cluster_id, label, words_a, words_b, margin (score of a less that of b), truncated. Scores: a, b, a, b, ..."""
    return pd.DataFrame([
        {
            "axis": pair.prompt.axis, "cluster_id": pair.prompt.cluster_id, "label": pair.label, "words_a": len(pair.a.split()),
            "words_b": len(pair.b.split()), "margin": scores[2 * place] - scores[2 * place + 1],
            "truncated": truncated[2 * place] or truncated[2 * place + 1],
        }
        for place, pair in enumerate(labelled.pairs)
    ])  # fmt: skip


def reward_spec(given: str) -> PretrainedReward:
    """The model that MODEL of the command line names: a folder, a hub id, or a YAML mapping of the keys of `kind: pretrained`.

    Without `template` the tokenizer's chat template is used, where it has one. Raises InputError, naming the key.
    """
    from pydantic import ValidationError

    from apo_bench.config.plain_yaml import parse_yaml, read_yaml

    if given.lstrip().startswith("{"):
        fields = parse_yaml(given, "MODEL")
    else:
        fields = read_yaml(Path(given), given) if re.search(r"\.ya?ml$", given) else {"path": given}
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise InputError("MODEL: a folder, a hub id, or a mapping with path: is needed")
    try:
        spec = PretrainedReward.model_validate({"kind": "pretrained", **fields})
    except ValidationError as error:
        raise input_error("MODEL", error, {"kind": "pretrained", **fields}, PretrainedReward) from None
    if "template" in fields:
        return spec
    from apo_bench.models.finished_reward import own_template

    with refusing(spec.path):
        template = own_template(resolve_model(spec.path, Path.cwd()), spec.trust_remote_code)
    return spec.model_copy(update={"template": template})


def _score(spec: PretrainedReward, sources: Sequence[Labelled]) -> list[pd.DataFrame]:
    """The pairs of each source with their margins; the model is loaded once."""
    from apo_bench.models.device import own_device
    from apo_bench.models.finished_reward import load_finished
    from apo_bench.models.policy import use_one_thread
    from apo_bench.models.precision import resolved
    from apo_bench.models.reward import encode_texts, score

    use_one_thread()
    spec = resolved(spec, own_device().type)
    model, tokenizer = load_finished(spec.path, spec, dtype=spec.dtype, attention=spec.attention)
    frames = []
    for labelled in sources:
        items = [(pair.prompt, text) for pair in labelled.pairs for text in (pair.a, pair.b)]
        truncated = [encoded.truncated for encoded in encode_texts(tokenizer, items, spec, model=model)]
        frames.append(pair_frame(labelled, score(model, tokenizer, items, spec)[0], truncated))
    return frames


def _source(name: str, n: int | None) -> Labelled:
    if Path(name).is_file():
        return read_labelled(Path(name), n)
    if find_beside(Path("tasks") / name, None) is None and find_beside(name, None) is None:
        raise InputError(f"--data {name}: neither a file nor a task")
    return labelled_pairs(load_task(name, {}, base=None), n)


def _markdown(labelled: Labelled, rows: pd.DataFrame) -> list[str]:
    cells = [[plain(row.axis), plain(row.metric), number(row.value), _interval(row), count(row.n)] for row in rows_of(rows)]
    left_out = "".join(f"; left out: {plain(reason)} {count(times)}" for reason, times in sorted(labelled.left_out.items()) if times)
    accuracy = rows_of(rows[(rows["axis"] == POOLED) & (rows["metric"] == "accuracy")])[0]
    verdict = "It sides with people" if accuracy.ci_low > 0.5 else "It is not shown to side with people"
    return [
        f"{verdict}: accuracy {number(accuracy.value)} ({_interval(accuracy)}) on {count(accuracy.n)} pairs.",
        "",
        *table(["axis", "metric", "value", f"{100 * CONFIDENCE:g} % interval", "n"], cells),
        "",
        f"Data: {plain(labelled.name)}, {count(len(labelled.pairs))} labelled pairs{left_out}. What the model was trained on is not known.",
    ]


def _interval(row: Any) -> str:
    return "-" if np.isnan(row.ci_low) else f"{number(row.ci_low)} to {number(row.ci_high)}"
