"""Published numbers: the file that is shipped, what is refused, intervals derived by hand, and the table with ours beside."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import experiment, frame, measured, scored, write_run

from apo_bench.analysis import published
from apo_bench.analysis.contrasts import contrasts
from apo_bench.analysis.results import Run, read_run
from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.errors import InputError
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.provenance import published_section

HEADER = ",".join(published.PUBLISHED_COLUMNS)
SHIPPED = published.read_published(published.find_published("apo_2024"))


def differences() -> dict[tuple[str, str], pd.Series]:
    result = published.published_differences(SHIPPED)
    return {(row["metric"], row["arm"]): row for _, row in result.iterrows()}


def test_the_shipped_numbers_are_those_of_the_extraction() -> None:
    """Plain -> APO as in the issue's text; every row says that it was not checked against the paper."""
    value = {(row.arm, row.metric): row.value for row in SHIPPED.itertuples()}
    scores = {"base": 1.272, "golden_sft": 2.310, "rjs": 1.582, "apo_rjs": 1.623, "rrhf": 2.201, "apo_rrhf": 2.302, "dpo": 2.445}
    assert {arm: value[arm, "score"] for arm in scores} == scores
    assert value["apo_dpo", "score"] == 2.633
    wins = {"rjs": 35.78, "apo_rjs": 36.43, "rrhf": 62.77, "apo_rrhf": 69.64, "dpo": 68.86, "apo_dpo": 74.22}
    assert {arm: value[arm, "win_percent"] for arm in wins} == wins
    right = {"base": 63.04, "ab_v1": 63.53, "gail_like": 56.58, "apo_v1.1": 66.73, "apo_v2": 67.07, "apo_v3": 67.56}
    assert {arm: value[f"rm_{arm}", "accuracy_percent"] for arm in right} == right
    off = {"base": 0.019, "gail_like": 0.167, "wgan_like": 0.067, "apo_v1.1": 0.033, "apo_v3": 0.031, "apo_v3_seq": 0.093}
    assert {arm: value[f"rm_{arm}", "ece"] for arm in off} == off
    assert len(SHIPPED) == 8 + 6 + 6 + 6
    assert SHIPPED["certainty"].str.startswith("third-party extraction").all()


def test_the_win_rates_of_rejection_sampling_by_hand() -> None:
    """35.78 -> 36.43 % on 4,664 items: pooled p = 0.36105, error sqrt(2 * 0.36105 * 0.63895 / 4664) = 0.0099463, z = 0.0065 / that.

    Newcombe's interval is nearly d -+ 1.96 * 0.0099463 = 0.0065 -+ 0.0195 at this n.
    """
    result = differences()["win_percent", "apo_rjs"]
    error = math.sqrt(2 * 0.36105 * 0.63895 / 4664)
    assert result["z"] == pytest.approx(0.0065 / error)
    assert round(result["z"], 2) == 0.65
    assert result["difference"] == pytest.approx(0.65)
    assert result["ci_low"] == pytest.approx(0.65 - 196 * error, abs=0.01)
    assert result["ci_high"] == pytest.approx(0.65 + 196 * error, abs=0.01)
    assert differences()["win_percent", "apo_rrhf"]["ci_low"] > 0


def test_newcombes_interval_of_his_own_example() -> None:
    """Newcombe (1998), Table II (a): 56/70 - 48/80, method 10 gives 0.0524 to 0.3339."""
    low, high, _ = published.share_difference(56 / 70, 48 / 80, 70, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_newcombes_interval_covers() -> None:
    """Independent shares of 60 and 80 items, p = 0.3 and 0.4: the truth, -0.1, is in about 95 % of 2,000 intervals (SE 0.5 %)."""
    generator = np.random.default_rng(0)
    inside = 0
    for a, b in zip(generator.binomial(60, 0.3, 2000) / 60, generator.binomial(80, 0.4, 2000) / 80, strict=True):
        low, high, _ = published.share_difference(a, b, 60, 80)
        inside += low <= -0.1 <= high
    assert 0.935 <= inside / 2000 <= 0.97


def test_means_without_an_sd_have_no_interval() -> None:
    result = differences()
    for key in (("score", "apo_dpo"), ("ece", "rm_apo_v3")):
        assert math.isnan(result[key]["ci_low"])
        assert result[key]["note"].startswith("no interval")
    assert result["score", "apo_dpo"]["difference"] == pytest.approx(0.188)
    assert result["accuracy_percent", "rm_ab_v1"]["ci_low"] < 0 < result["accuracy_percent", "rm_apo_v3"]["ci_low"]


GOOD = "policies,m,d,base,,score,1.5,,j,x,u,s,c"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["policies,m,d,base,,score,much,,j,x,u,s,c"], "line 2: value: a number is needed, got 'much'"),
        (["policies,m,d,base,,score,inf,,j,x,u,s,c"], "line 2: value"),
        (["policies,m,d,base,,win_percent,101,4,j,x,u,s,c"], "line 2: value: a number from 0 to 100"),
        ([GOOD, "policies,m,d,a,,ece,1.5,4,j,x,u,s,c"], "line 3: value: a number from 0 to 1"),
        (["policies,m,d,base,,score,1,-4,j,x,u,s,c"], "line 2: n"),
        (["policies,m,d,base,,score,1,4.5,j,x,u,s,c"], "line 2: n"),
        (["policies,m,d,base,,bleu,1,,j,x,u,s,c"], "line 2: metric: 'bleu' is none of"),
        (["policies,m, ,base,,score,1,,j,x,u,s,c"], "line 2: data: empty"),
        (["policies,m,d,base,,score,1,,,x,u,s,c"], "line 2: judge: empty"),
        (["policies,m,d,base,,score,1,,j,,u,s,c"], "line 2: scale: empty"),
        (["policies,m,d,base,,score,1,,j,x,,s,c"], "line 2: unknown: empty"),
        (["policies,m,d,base,,score,1,,j,x,u,,c"], "line 2: source: empty"),
        (["policies,m,d,base,,score,1,,j,x,u,s, "], "line 2: certainty: empty"),
        (["policies,m,d,base,,score,1,,j,x,u,s"], "line 2: columns"),
        (["policies,m,d,base,,score,1,,j,x,u,s,c,more"], "line 2: columns"),
        ([GOOD, GOOD], "policies, base, score occurs twice"),
        (["policies,m,d,base,nobody,score,1,,j,x,u,s,c"], "against: base is compared with 'nobody'"),
        (['policies,"m,base'], "not readable as csv"),
    ],
)
def test_a_bad_row_is_one_line_that_names_it(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    with pytest.raises(InputError) as caught:
        published.read_published(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_columns_and_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    for content in (b"", b"a,b\n1,2\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            published.read_published(path)
    with pytest.raises(InputError, match="not readable"):
        published.read_published(tmp_path / "absent.csv")


@pytest.mark.parametrize("name", ["../apo_2024", "/etc/passwd", "nobody", ""])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"report\.beside: no published numbers named"):
        published.find_published(name)


def test_arms_are_found_by_their_method() -> None:
    """rjs and apo_rjs by method; golden_refresh is APO with another opponent, which the paper has not."""
    experiment_ = Experiment.model_validate(experiment())
    assert published.matching_arms(experiment_, {}) == {"rjs": "rjs", "apo_rjs": "apo_rjs"}
    assert published.matching_arms(experiment_, {"dpo": "golden_refresh"})["dpo"] == "golden_refresh"
    rjs = {"use": "baselines/rejection_sampling.py@RejectionSampling"}
    two = {
        "one": rjs,
        "other": rjs,
        "golden": {"use": "baselines/sft.py@SFT", "imitate": "golden"},
        "chosen": {"use": "baselines/sft.py@SFT"},
    }
    experiment_ = Experiment.model_validate(experiment(arms=two, compare={"primary": [{"a": "one", "b": "other"}]}))
    assert published.matching_arms(experiment_, {}) == {"golden_sft": "golden"}


@pytest.mark.parametrize(
    ("named", "message"), [({"ppo": "rjs"}, "report.arms.ppo: no such policy"), ({"dpo": "x"}, "report.arms.dpo: no arm")]
)
def test_a_mapping_that_names_nothing_is_refused(named: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        published.matching_arms(Experiment.model_validate(experiment()), named)


def made_run(folder: Path) -> Run:
    """Scores by gold model `encoder`: round 0 all 0; at the end rjs 1 to 1.2 by seed, apo_rjs 2 more on even and 1 more on odd prompts."""
    end = {("rjs", seed, 1): [1.0 + 0.1 * seed] * 8 for seed in range(3)}
    end |= {("apo_rjs", seed, 1): [1.0 + 0.1 * seed + 2 - (place % 2) + 0.01 * seed * place for place in range(8)] for seed in range(3)}
    start = {(arm, seed, 0): [0.0] * 8 for arm in ("rjs", "apo_rjs") for seed in range(3)}
    rm = [
        (arm, seed, 1, "all", metric, base + step * seed, base, base, 50)
        for arm, metric, base, step in (
            ("rjs", "accuracy_human", 0.6, 0.0),
            ("apo_rjs", "accuracy_human", 0.62, 0.01),
            ("rjs", "ece", 0.02, 0.0),
            ("apo_rjs", "ece", 0.03, 0.0),
        )
        for seed in range(3)
    ]  # fmt: skip
    tables = {
        "scores": scored(start | end, scorer="encoder"),
        "metrics": measured("kl", {}),
        "reward_models": frame("reward_models", rm),
        "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, math.nan)]),
        "gold": frame("gold", [("encoder", -1, "helpful", "accuracy", 0.7, 0.6, 0.8, 50, 20)]),
    }
    return read_run(write_run(folder / "run", tables))


def test_ours_stand_beside_theirs(tmp_path: Path) -> None:
    """Our contrast apo_rjs - rjs is the report's; accuracies in per cent: 60 and (62 + 63 + 64) / 3 = 63, the difference 3 with t interval
    3 -+ 4.3027 / sqrt(3) (SD 1, three seeds). A judge's win rate of 60 % is a lead of 20 points over the 40 % that are left."""
    run = made_run(tmp_path)
    run = replace(run, experiment=run.experiment.model_copy(update={"judges": {"gpt": JudgeChoice(use="judges.py@Gpt")}}))
    judged = pd.DataFrame([("apo_rjs", "rjs", "all", "gpt", 0.6, 0.5, 0.7, "")], columns=JUDGED)
    frames = {"contrasts": contrasts(run), "judged": judged}
    result = {(row["metric"], row["arm"]): row for row in published.compare_with_published(run, frames, SHIPPED, {}).to_dict("records")}

    def cells(metric: str, arm: str, *names: str) -> list[Any]:
        return [result[metric, arm][f"our_{name}"] for name in names]

    compared = frames["contrasts"].query("arm_a == 'apo_rjs' and arm_b == 'rjs' and axis == 'all' and scorer == 'encoder'").iloc[0]
    score = ("score", "apo_rjs")
    assert cells(*score, "arm", "against", "scorer") == ["apo_rjs", "rjs", "encoder"]
    assert cells(*score, "difference", "low", "high") == compared[["difference", "ci_low", "ci_high"]].tolist()
    value, other, difference = cells(*score, "value", "value_against", "difference")
    assert value - other == pytest.approx(difference)
    right = cells("accuracy_percent", "rm_apo_v3", "value_against", "value", "difference", "high")
    assert right == pytest.approx([60, 63, 3, 3 + 4.302653 / math.sqrt(3)], rel=1e-6)
    wins = cells("win_percent", "apo_rjs", "value", "value_against", "difference", "low", "high")
    assert wins == pytest.approx([60, 40, 20, 0, 40])
    for missing in (("score", "apo_dpo"), ("win_percent", "apo_dpo"), ("ece", "rm_apo_v3_seq")):
        assert cells(*missing, "arm") == [""]
        assert math.isnan(cells(*missing, "difference")[0])


JUDGED = ["arm_a", "arm_b", "axis", "judge", "win_rate", "ci_low", "ci_high", "informative"]


@pytest.mark.parametrize(
    ("own", "verdicts", "chosen", "rate"),
    [
        (["gpt"], [("added", 0.5, ""), ("gpt", 0.6, "")], "judge/gpt", 60),
        (["b", "a"], [("a", 0.5, ""), ("b", 0.6, "")], "judge/b", 60),
        (["b", "a"], [("a", 0.5, ""), ("b", 0.6, "accuracy: the interval includes 1/2")], "judge/a", 50),
        (["b", "a"], [("a", 0.5, ""), ("b", math.nan, "")], "judge/a", 50),
        (["gpt"], [("gpt", 0.6, "not audited"), ("added", 0.5, "")], "", math.nan),
        ([], [("added", 0.5, "")], "", math.nan),
    ],
    ids=["one was added", "the first of two", "the first is uninformative", "the first has no verdict", "it was not audited", "none"],
)
def test_our_win_rate_is_by_the_experiment_s_own_informative_judge(
    own: list[str], verdicts: list[tuple[str, float, str]], chosen: str, rate: float, tmp_path: Path
) -> None:
    """An added judge changes no published comparison, and the judge is named; without one there are no numbers."""
    run = made_run(tmp_path)
    run = replace(run, experiment=run.experiment.model_copy(update={"judges": {name: JudgeChoice(use="judges.py@J") for name in own}}))
    judged = pd.DataFrame([("apo_rjs", "rjs", "all", name, value, 0.4, 0.7, why) for name, value, why in verdicts], columns=JUDGED)
    frames = {"contrasts": contrasts(run), "judged": judged}
    rows = published.compare_with_published(run, frames, SHIPPED, {})
    row = rows[(rows["metric"] == "win_percent") & (rows["arm"] == "apo_rjs")].iloc[0]
    assert row["our_scorer"] == chosen
    assert row["our_value"] == pytest.approx(rate, nan_ok=True)
    caveats = " ".join(published.comparison_caveats(run, SHIPPED, rows))
    assert (f"by {chosen}" if chosen else "no informative judge") in caveats


def section_of(run: Run) -> list[str]:
    """The report's section of markdown on apo_2024."""
    frame = published.compare_with_published(run, {"contrasts": contrasts(run)}, SHIPPED, {})
    return section_lines([published_section(run, "apo_2024", frame)])


@pytest.mark.slow
def test_the_section_has_both_and_says_what_differs(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    lines = section_of(run)
    text = "\n".join(lines)
    (row,) = [line for line in lines if line.startswith("| win rate, % | apo_rjs \u2212 rjs")]
    assert "| 35.78 | 36.43 | +0.65 (\u22121.30 to +2.60) | 0.65 |" in row
    assert row.endswith("| 0.65 | - | - | - | - |")  # no judge was asked
    assert "| apo_rjs \u2212 rjs | 1.582 | 1.623 | +0.041 | - | apo_rjs \u2212 rjs |" in text
    for word in (
        "third-party extraction",
        "Alpaca2",
        "8 test prompts, 3 seeds",
        "sizes cannot",
        "GPT-4",
        "unknown: against what they were won",
    ):
        assert word in text
    (absent,) = [line for line in lines if "No arm here" in line]
    assert "apo_rjs" not in absent  # has a score here, and no win rate
    assert lines == section_of(run)


def test_of_another_source_only_its_own_file_speaks(tmp_path: Path) -> None:
    """Nothing that is true of apo_2024 alone is said of a file with other data, another judge and no reward models."""
    path = tmp_path / "other.csv"
    path.write_text(
        f"{HEADER}\np,m7,TL;DR,rjs,,win_percent,40,100,people,wins,ties,S,C\np,m7,TL;DR,apo_rjs,rjs,win_percent,50,100,people,wins,ties,S,C\n"
    )
    run, rows = made_run(tmp_path), published.read_published(path)
    result = published.compare_with_published(run, {"contrasts": contrasts(run)}, rows, {})
    text = "\n".join(published.comparison_caveats(run, rows, result))
    assert "Win rate, %: theirs by people, wins; unknown: ties." in text
    assert "Data: theirs TL;DR; ours task" in text
    for word in ("GPT-4", "HH", "RM_All", "Reward model", "third", "same"):
        assert word not in text
