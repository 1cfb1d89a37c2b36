"""Verdicts recorded elsewhere: each benchmark's rows, both rules for ties, and PandaLM's own files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.errors import InputError
from apo_bench.judging.human_preferences import read_labelled
from apo_bench.judging.recorded_verdicts import compare_recorded, read_recorded

PANDALM = Path(__file__).parents[3] / "shared" / "data" / "judging" / "pandalm"


def judge_bench(number: int, label: str, *decisions: str | None) -> dict[str, Any]:
    return {
        "pair_id": str(number), "source": "mmlu-pro-law", "question": f"q{number}", "response_A": "x", "response_B": "y", "label": label,
        "judgments": [{"decision": decision} for decision in decisions],
    }  # fmt: skip


def mt_bench(winner: str, judge: str, a: str = "m", b: str = "n") -> dict[str, Any]:
    spoken = {name: [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"by {name}"}] for name in (a, b)}
    return {
        "question_id": 1, "model_a": a, "model_b": b, "winner": winner, "judge": judge, "turn": 1, "conversation_a": spoken[a],
        "conversation_b": spoken[b],
    }  # fmt: skip


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def values(path: Path, labels: Path | None = None) -> dict[str, float]:
    rows = compare_recorded(read_recorded(path, labels)[0])
    pooled = rows[rows["axis"] == "all"]
    return dict(zip(pooled["metric"], pooled["value"], strict=True))


def test_judge_bench_by_both_rules_for_ties(tmp_path: Path) -> None:
    """Five pairs, all labelled A>B, decisions in the order shown: right in both orders; orders that contradict; wrong in both; a tie and a
    win; none. By half: (1 + 1/2 + 0 + 1) / 4; ties wrong: (1 + 0 + 0 + 1) / 4. Of the four with both orders two agree."""
    rows = [
        judge_bench(1, "A>B", "A>B", "B>A"), judge_bench(2, "A>B", "A>B", "A>B"), judge_bench(3, "A>B", "B>A", "A>B"),
        judge_bench(4, "A>B", "A=B", "B>A"), judge_bench(5, "A>B", None, None),
    ]  # fmt: skip
    result = values(written(tmp_path, rows))
    assert result["accuracy, ties half"] == pytest.approx(2.5 / 4)
    assert result["accuracy, ties wrong"] == pytest.approx(2 / 4)
    assert result["consistency"] == pytest.approx(2 / 4)
    assert result["missing"] == pytest.approx(1 / 5)


def test_mt_bench_takes_people_s_majority_whichever_way_round(tmp_path: Path) -> None:
    """Two people for m, one for n given the other way round; the judge says n. Without a majority the comparison is left out."""
    rows = [
        mt_bench("model_a", "expert_1"),
        mt_bench("model_b", "author_0", "n", "m"),
        mt_bench("model_b", "expert_2"),
        mt_bench("model_b", "gpt4_pair"),
    ]
    frame, left_out = read_recorded(written(tmp_path, rows))
    assert (frame["label"].tolist(), frame["value"].tolist(), left_out) == (["a"], [0.0], {})
    _, left_out = read_recorded(written(tmp_path, [*rows, *({**row, "question_id": 2} for row in (rows[0], rows[2]))]))
    assert left_out == {"no majority of annotators": 1}
    pair = read_labelled(written(tmp_path, rows)).pairs[0]
    assert (pair.a, pair.b, pair.label) == ("by m", "by n", "a")


def test_llm_bar_with_a_column_of_verdicts(tmp_path: Path) -> None:
    rows = [
        {"input": f"q{place}", "output_1": "x", "output_2": "y", "label": label, "verdict": verdict}
        for place, (label, verdict) in enumerate([(1, "A"), (2, "B"), (2, "A"), (1, "tie"), (1, "?")])
    ]
    result = values(written(tmp_path, rows))
    assert result["accuracy, ties half"] == pytest.approx(2.5 / 4)
    assert result["accuracy, ties wrong"] == pytest.approx(2 / 4)
    assert "consistency" not in result
    assert len(read_labelled(written(tmp_path, rows)).pairs) == 5


def test_reward_bench_scores_are_verdicts_for_the_chosen_side(tmp_path: Path) -> None:
    scores = [(2.0, 1.0), ([1.0], [2.0]), (1.0, 1.0), (math.nan, 1.0)]
    rows = [
        {"id": n, "prompt": f"q{n}", "text_chosen": "x", "text_rejected": "y", "scores_chosen": a, "scores_rejected": b, "subset": "s"}
        for n, (a, b) in enumerate(scores)
    ]
    result = values(written(tmp_path, rows))
    assert result["accuracy, ties half"] == pytest.approx(1.5 / 3)
    assert result["accuracy, ties wrong"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**judge_bench(1, "A=B", "A>B")}, "label: A>B or B>A"),
        ({**judge_bench(1, "A>B")}, "no row has a verdict"),
        ({"a": 1}, "none of JudgeBench's"),
        ({**mt_bench("x", "expert_1")}, "winner: model_a, model_b or tie"),
        ({"input": "q", "output_1": "x", "output_2": 1, "label": 1}, "output_2: text is needed"),
    ],
)
def test_what_cannot_be_read_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_recorded(written(tmp_path, [row]))


@pytest.mark.slow
@pytest.mark.skipif(not PANDALM.is_dir(), reason="PandaLM's files are not here")
def test_pandalm_s_own_verdicts(tmp_path: Path) -> None:
    """Counted apart from this code: of the 999 items GPT-3.5 gives the majority's label on 697 and no readable verdict on 25. Six items
    whose response is no text are left out."""
    labels, verdicts = PANDALM / "testset-v1.json", PANDALM / "gpt-3.5-turbo-testset-v1.json"
    frame, left_out = read_recorded(verdicts, labels)
    assert len(frame) + sum(left_out.values()) == 999
    items = [item for item in json.loads(labels.read_text()) if not any(isinstance(item[f"response{n}"], bool) for n in (1, 2))]
    results = {record["idx"]: record["gpt_result"].casefold() for record in json.loads(verdicts.read_text())}
    majority = [max((0, 1, 2), key=[item[f"annotator{n}"] for n in (1, 2, 3)].count) for item in items]
    same = [{"1": 1, "2": 2, "tie": 0}[results[item["idx"]]] == label for item, label in zip(items, majority, strict=True)
            if results[item["idx"]] in ("1", "2", "tie")]  # fmt: skip
    result = compare_recorded(frame)
    row = result[(result["axis"] == "all") & (result["metric"] == "same label")].iloc[0]
    assert (row["n"], row["n_missing"]) == (len(same), len(items) - len(same))
    # Clusters of equal instructions weigh by their pairs, so that the share is that of pairs.
    assert row["value"] == pytest.approx(sum(same) / len(same))
    ended = CliRunner().invoke(app, ["audit-judge", "--verdicts", str(verdicts), "--data", str(labels), "--out", str(tmp_path / "audit")])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert "accuracy, ties wrong" in ended.stdout
