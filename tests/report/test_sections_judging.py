"""What the report says of judges: every number in its cell, every reason in words."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from verdict_frames import AUDIT, BY_HAND, LENGTHS, NAN, NO_AUDIT, A, audited, scored, three_seeds, verdicts

from apo_bench.analysis.win_rates import flag_uninformative_judges, judge_agreement, judge_score_agreement, win_rates
from apo_bench.clients.journal import Journal
from apo_bench.formatting import plain
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.audit import audit
from apo_bench.judging.human_preferences import Labelled, LabelledPair
from apo_bench.judging.judge_protocol import JudgeContext
from apo_bench.judging.simulated_judge import SimulatedJudge
from apo_bench.report.markdown import block_lines, section_lines
from apo_bench.report.sections.answer import judge_warnings as warnings
from apo_bench.report.sections.judges import trust_section, win_rate_blocks
from apo_bench.types import Message, Prompt

NOTHING = pd.DataFrame()


def judged(rates: pd.DataFrame) -> list[str]:
    return [line for block in win_rate_blocks(rates) for line in block_lines(block)]


def trust(*frames: Any) -> list[str]:
    return section_lines([trust_section(*frames)])[1:]


def cells(lines: list[str], header: str) -> list[dict[str, str]]:
    """The rows of the table whose header line holds `header`, as dicts; every row has a cell for every column."""
    start = next(place for place, line in enumerate(lines) if line.startswith("|") and f"| {header} |" in line)
    names, rows = split(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        assert len(split(line)) == len(names)
        rows.append(dict(zip(names, split(line), strict=True)))
    return rows


def split(line: str) -> list[str]:
    return [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_the_table_by_hand():
    """The numbers of test_judged.test_a_win_rate_by_hand; one axis, so no pooled row."""
    lines = judged(win_rates(verdicts(BY_HAND, LENGTHS), audited(), ["helpful"], draws=100))
    (row,) = cells(lines, "win rate")
    assert row | {"equal length": ""} == {
        "pair": "`apo_rjs` over `golden_refresh`", "axis": "helpful", "judge": "judge", "round": "3",
        "win rate": "0.562 (0.147 to 0.906)", "p": "0.758", "n": "4", "seeds": "1", "clusters": "4",
        "missing": "1 (0.450 to 0.550)", "inconsistent": "0.500", "first": "0.688", "ties": "0.500", "longer by": "+4.0",
        "equal length": "", "disagree is tie": "0.625 (0.206 to 0.914)", "note": "a",
    }  # fmt: skip
    assert row["equal length"].count(" to ") == 1
    (lost,) = cells(lines, "why")
    assert [lost[name] for name in ("first arm shown first", "second arm shown first", "why")] == ["1", "0", "unparsable 1"]
    assert (lost["longer by, where missing"], lost["longer by"]) == ("+12.0", "+4.0")
    (note,) = (line for line in lines if line.startswith("- (a)"))
    for sentence in (
        "Test: t test over clusters of prompts",
        "Scope: these checkpoints only",
        "the one tested is that of what is left only",
    ):
        assert sentence in note


def test_every_column_is_explained_once_and_every_mark_has_a_note():
    rates = win_rates(three_seeds(np.random.default_rng(0)), NO_AUDIT, ["harmless", "helpful"], draws=100)
    lines = judged(rates)
    rows = cells(lines, "win rate")
    assert [row["axis"] for row in rows] == ["harmless", "helpful", "all"]
    for name in set(rows[0]) - {"pair", "axis", "judge", "round", "seeds", "clusters", "note"}:
        assert sum(line.startswith(f"- {name}: ") for line in lines) == 1, name
    for row in rows:
        assert sum(line.startswith(f"- ({row['note']}) ") for line in lines) == 1
    assert any("The judge was not audited." in line for line in lines)


def test_no_missing_verdict_no_table_of_them():
    lines = judged(win_rates(three_seeds(np.random.default_rng(0), missing=0.0), NO_AUDIT, ["harmless"], draws=100))
    assert not any("Missing verdicts" in line for line in lines)
    assert {row["missing"] for row in cells(lines, "win rate")} == {"0"}


def test_what_is_not_available_is_a_dash_with_a_reason():
    rows = verdicts({(0, f"p{i}"): (None, None) for i in range(3)}).assign(length_a=NAN)
    lines = judged(win_rates(rows, audited(), ["helpful"], draws=100))
    (row,) = cells(lines, "win rate")
    assert {row[name] for name in ("win rate", "inconsistent", "first", "ties", "longer by", "equal length", "disagree is tie")} == {"-"}
    assert (row["p"], row["n"], row["missing"]) == ("", "0", "3")
    assert any(line.startswith("- (a) Test: none: 0 cluster(s) with a comparison in every seed") for line in lines)
    some = judged(win_rates(verdicts(BY_HAND).assign(length_a=NAN), audited(), ["helpful"], draws=100))
    assert any("No win rate at equal length: no comparison has a value and both lengths." in line for line in some)
    assert judged(win_rates(rows.iloc[:0], NO_AUDIT, ["helpful"])) == ["No verdict was recorded."]


def test_text_from_files_stays_in_its_cell():
    odd = {"failure": "HTTP 400 | bad\nrequest", "judge": "a|b"}
    rows = verdicts({(0, "p0"): (None, "first"), (0, "p1"): ("first", "second"), (0, "p2"): ("tie", "tie")}).assign(**odd)
    lines = judged(win_rates(rows, NO_AUDIT, ["helpful"], draws=100))
    (lost,) = cells(lines, "why")
    assert (lost["why"], lost["judge"]) == ("HTTP 400 | bad request 1", "a|b")
    assert cells(trust(NO_AUDIT, ["a|b"], NOTHING, NOTHING), "verdict")[0]["judge"] == "a|b"


def test_trust_by_hand():
    """Two judges, one uninformative on an axis and so on all; a third was not audited."""
    good = [audited("x", axis) for axis in ("harmless", "helpful", "all")]
    bad = [audited("y", axis, accuracy=(0.55, 0.45, 0.65)) for axis in ("helpful", "all")] + [audited("y", "harmless")]
    planted = pd.DataFrame([("x", "all", "attack_instruction", 0.25, 0.2, 0.3, 80, 2)], columns=AUDIT)
    lines = trust(pd.concat([*good, *bad, planted]), ["x", "y", "z"], NOTHING, NOTHING)
    assert lines[0] == "### How far the judges can be trusted"
    rows = {(row["judge"], row["axis"]): row for row in cells(lines, "verdict")}
    assert rows["x", "all"]["accuracy"] == "0.800 (0.700 to 0.900)"
    assert rows["x", "all"]["length bias"] == "-"
    assert {rows["x", axis]["verdict"] for axis in ("all", "harmless", "helpful")} == {"informative"}
    assert rows["y", "harmless"]["verdict"] == "informative"
    assert all(rows["y", axis]["verdict"].startswith("uninformative judge on helpful") for axis in ("helpful", "all"))
    assert (rows["z", "all"]["accuracy"], rows["z", "all"]["verdict"]) == ("-", "not audited")
    assert cells(lines, "attack") == [
        {"judge": "x", "attack": "instruction", "succeeds": "0.250 (0.200 to 0.300)", "n": "80", "missing": "2"}
    ]


def test_judges_beside_each_other_and_the_scores():
    both = pd.concat([three_seeds(np.random.default_rng(i), judge=judge) for i, judge in enumerate("xy")])
    scores = scored({"p00": (2, 1), "p01": (1, 1), "p02": (0, 1)})
    axes = ["harmless", "helpful"]
    between = flag_uninformative_judges(judge_agreement(both), NO_AUDIT, axes, ("judge", "other"))
    lines = trust(NO_AUDIT, ["x", "y"], between, flag_uninformative_judges(judge_score_agreement(both, scores), NO_AUDIT, axes))
    rows = cells(lines, "same label")
    assert [(row["judges"], row["axis"]) for row in rows] == [("x, y", "all"), ("x, y", "harmless"), ("x, y", "helpful")]
    assert {len(row["same label"].split(" to ")) for row in rows} == {2}
    assert {row["not to be relied on"] for row in rows} == {"x: not audited; y: not audited"}
    against = cells(lines, "same winner")
    assert [(row["judge"], row["scorer"], row["axis"]) for row in against][:2] == [("x", "gold", "all"), ("x", "gold", "harmless")]
    assert against[0]["n"] != "0"


def test_warnings_name_each_judge_once():
    rows = three_seeds(np.random.default_rng(0))
    bad = pd.concat([audited(axis=axis, accuracy=(0.55, 0.45, 0.65)) for axis in ("harmless", "helpful", "all")])
    axes = ["harmless", "helpful"]
    messages = [
        warnings(win_rates(rows, audits, axes, draws=100))
        for audits in (pd.concat([audited(axis=x) for x in (*axes, "all")]), NO_AUDIT, bad)
    ]
    assert messages[0] == []
    assert messages[1] == ["Judge judge: not audited, so whether it agrees with people is not known."]
    assert [line.split(":")[1] for line in messages[2]] == [f" uninformative judge on {axis}" for axis in axes]


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "informative"), (1e6, "uninformative judge on helpful")])
def test_a_real_audit_reaches_the_report(tmp_path: Any, noise: float, verdict: str):
    """A simulated judge is audited on 60 pairs whose better response says yes, then judges the same arms."""

    def truth(prompt: Prompt, response: str) -> float:
        return 2.0 * response.split().count("yes")

    pairs = []
    for place in range(60):
        prompt = Prompt(f"p{place}", (Message("user", f"question {place}"),), "helpful", f"p{place}")
        yes, no = f"yes {place}", f"no {place}"
        pairs.append(LabelledPair(prompt, yes, no, "a") if place % 2 else LabelledPair(prompt, no, yes, "b"))
    judge = SimulatedJudge(noise=noise).open(JudgeContext(ground_truth=truth))
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.open():
        result = audit(judge, Labelled("made", tuple(pairs), {}), journal)
    table = result.rows.assign(judge="judge")
    lines = trust(table, ["judge"], NOTHING, NOTHING)
    assert all(row["verdict"].startswith(verdict) for row in cells(lines, "verdict"))
    assert {row["attack"] for row in cells(lines, "attack")} == set(ATTACKS)
    rates = win_rates(verdicts(BY_HAND), table, ["helpful"], draws=100)
    assert rates["p_value"].isna().tolist() == [verdict != "informative"] * 2
    assert set(rates["arm_a"]) == {A}


def test_text_from_a_server_is_inert_in_a_report():
    """No tag, no image, no further cell or line."""
    assert plain("<script>x</script> ![i](http://e)\n| a") == "&lt;script>x&lt;/script> !\\[i]\\(http://e) \\| a"
