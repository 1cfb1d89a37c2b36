"""Task folder -> Task: rows split by conversation, checked for leaks, counted."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apo_bench.data.rows import WARM_UP_SPLITS, RowReader, is_text
from apo_bench.data.splits import check_leaks
from apo_bench.data.task_folder import TaskCode, code_of, find_task, merge_options, read_description, with_shares
from apo_bench.errors import InputError
from apo_bench.types import SPECIAL_WORDS, SPLITS, Demonstration, Pair, Prompt, Split, identity


@dataclass(frozen=True)
class Task:
    """Prompts and preference pairs, split by conversation.

    `axes` are those that have rows. `golden` maps the id of a prompt of the rm split to its golden response. `counts` has
    "<split>.pairs", "<split>.<axis>.pairs" and likewise prompts and clusters, and an entry for each reason for leaving rows out.
    `fingerprint` hashes the content of all rows; `source_files` are the task's YAML and python.
    `recognised` is a line on what a user's files were taken for, and what of them was left out.
    """

    name: str
    axes: tuple[str, ...]
    pairs: Mapping[Split, tuple[Pair, ...]]
    prompts: Mapping[Split, tuple[Prompt, ...]]
    golden: Mapping[str, str]
    ground_truth: Callable[[Prompt, str], float] | None
    is_refusal: Callable[[str], bool] | None
    demonstrations: tuple[Demonstration, ...]
    vocabulary: tuple[str, ...] | None
    provenance: str
    counts: Mapping[str, int]
    source_files: tuple[Path, ...]
    fingerprint: str
    recognised: str = ""


def load_task(use: str, options: Mapping[str, Any], *, base: Path | None) -> Task:
    """Load a task by name or by the path of its folder, with `options` over its defaults.

    `base` is the experiment file's folder. Raises InputError, one line naming file and key: unknown task, key or option, a bad row, a split
    or axis left empty, a conversation in two splits, python that fails.
    """
    with without_collector():
        task = _load(find_task(use, base), options, base)
    return task


@contextmanager
def without_collector() -> Iterator[None]:
    """For work on a million texts: nothing of it refers to itself, and looking for what does takes a good part of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(folder: Path, options: Mapping[str, Any], base: Path | None) -> Task:
    path = folder / f"{folder.name}.yaml"
    about = read_description(path)
    options = merge_options(path, about.options, options)
    if options.get("splits") is not None:
        about = with_shares(path, about, options["splits"])
    code = TaskCode(path, options, base)
    reader = RowReader(path, about)
    for number, row in enumerate(code.each("rows", about.rows), 1):
        reader.add_row(number, row)
    if about.demonstrations:
        for number, row in enumerate(code.each("demonstrations", about.demonstrations), 1):
            reader.add_demonstration(number, row)
    pairs: dict[Split, tuple[Pair, ...]] = {split: tuple(reader.pairs[split]) for split in SPLITS}
    prompts: dict[Split, tuple[Prompt, ...]] = {split: tuple(reader.prompts[split].values()) for split in SPLITS}
    demonstrations = tuple(demonstration for split in WARM_UP_SPLITS for demonstration in reader.demonstrations[split])
    all_prompts: dict[Split, tuple[Prompt, ...]] = {
        split: (*prompts[split], *(demonstration.prompt for demonstration in reader.demonstrations[split])) for split in SPLITS
    }
    check_leaks(str(path), all_prompts)
    present = {prompt.axis for split in SPLITS for prompt in prompts[split]}
    axes = tuple(axis for axis in (sorted(present) if about.axes == "rows" else about.axes) if axis in present)
    counts = {**reader.dropped, **_counts(axes, pairs, prompts)}
    _refuse_empty(path, about.splits, axes, counts)

    answer = (
        code.function("golden", about.golden) if about.golden not in ("chosen", "rows") else lambda prompt: reader.golden.get(prompt.id)
    )
    with code.blamed("golden"):
        answers = {prompt.id: answer(prompt) for prompt in prompts["rm"]}
    golden = {id_: text for id_, text in answers.items() if is_text(text) and text.strip()}
    if odd := [text for text in answers.values() if text is not None and not is_text(text)]:
        raise InputError(f"{path}: metadata.apo_bench.golden: Unicode text or None is needed, got {odd[0]!r}")
    counts["rm prompts without a golden response"] = len(prompts["rm"]) - len(golden)
    vocabulary = tuple(code.each("vocabulary", about.vocabulary)) if about.vocabulary else None
    if odd := [word for word in vocabulary or () if not is_text(word)]:
        raise InputError(f"{path}: metadata.apo_bench.vocabulary: words are needed, got {odd[0]!r}")
    if odd := [word for word in vocabulary or () if word.split() != [word] or any(special in word for special in SPECIAL_WORDS)]:
        raise InputError(f"{path}: metadata.apo_bench.vocabulary: {odd[0]!r} is no word of texts: {_NO_WORD}")
    names = about.provenance.split(".")
    is_reference = len(names) == 2 and all(name.isidentifier() for name in names)  # "Ours." is a sentence
    return Task(
        name=folder.name,
        axes=axes,
        pairs=pairs,
        prompts=prompts,
        golden=golden,
        ground_truth=code.function("ground_truth", about.ground_truth) if about.ground_truth else None,
        is_refusal=code.function("is_refusal", about.is_refusal) if about.is_refusal else None,
        demonstrations=demonstrations,
        vocabulary=vocabulary,
        provenance=code.call("provenance", about.provenance) if is_reference else about.provenance,
        counts=counts,
        source_files=(path, *code_of(folder)),
        fingerprint=_fingerprint(pairs, prompts, golden, demonstrations, vocabulary or ()),
        recognised=_recognised(code.call("recognised", about.recognised), reader.dropped) if about.recognised else "",
    )


_NO_WORD = f"it may hold neither white space nor {', '.join(SPECIAL_WORDS)}, which mark turns, ends and padding"


def _recognised(line: str, dropped: Mapping[str, int]) -> str:
    return "; ".join([line, *(f"{n} {reason}" for reason, n in dropped.items() if n)])


def _counts(axes: tuple[str, ...], pairs: Mapping[Split, tuple[Pair, ...]], prompts: Mapping[Split, tuple[Prompt, ...]]) -> dict[str, int]:
    counts = {}
    for split in SPLITS:
        for axis in (None, *axes):
            members = [prompt for prompt in prompts[split] if axis in (None, prompt.axis)]
            where = f"{split}.{axis}" if axis else split
            counts[f"{where}.pairs"] = sum(axis in (None, pair.prompt.axis) for pair in pairs[split])
            counts[f"{where}.prompts"] = len(members)
            counts[f"{where}.clusters"] = len({prompt.cluster_id for prompt in members})
    return counts


def _refuse_empty(path: Path, shares: Mapping[Split, float], axes: tuple[str, ...], counts: Mapping[str, int]) -> None:
    if not axes:
        raise InputError(f"{path}: rows: no rows are left")
    for split in SPLITS:
        for axis in axes:
            for what in ("prompts", "pairs"):
                # Policies are trained on prompts alone; reward models and the tables that judge them need pairs.
                if shares.get(split, 0) > 0 and (what == "prompts" or split != "policy") and not counts[f"{split}.{axis}.{what}"]:
                    raise InputError(f"{path}: splits.{split}: no {axis} {what} fall into it; give more rows or a larger share")


def _fingerprint(
    pairs: Mapping[Split, tuple[Pair, ...]],
    prompts: Mapping[Split, tuple[Prompt, ...]],
    golden: Mapping[str, str],
    demonstrations: tuple[Demonstration, ...],
    vocabulary: tuple[str, ...],
) -> str:
    parts: list[str] = []
    for split in SPLITS:
        parts += [split, "pairs", *(pair.id for pair in pairs[split])]
        parts += ["prompts", *(text for prompt in prompts[split] for text in (prompt.id, prompt.cluster_id))]
    parts += ["golden", *(text for item in golden.items() for text in item)]
    parts += ["demonstrations", *(text for demonstration in demonstrations for text in (demonstration.prompt.id, demonstration.response))]
    return identity(*parts, "vocabulary", *vocabulary)
