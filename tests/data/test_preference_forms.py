"""Forms of preference data: rows as people have them, with the real columns, and what each comes to. The pair is always the same."""

from typing import Any

import pytest

from apo_bench.data.preference_forms import Item, Reading, Scored, WrongRow, pair_up, recognise, repeats_prompt

ASK, GOOD, BAD = "What colour is the sky, seen from a hill at noon?", "It is blue.", "It is green."
PAIR = Item((("user", ASK),), GOOD, BAD, GOOD)
LONG = (("user", "Hello."), ("assistant", "Yes?"), ("user", ASK))


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def reply(answer: str) -> tuple[str, str]:
    return "assistant", answer


def read(row: dict[str, Any], **reading: Any) -> list[Item]:
    how = Reading(**reading)
    form = recognise(row, how)
    assert form is not None
    items = []
    for item in form.read(row, how):
        items += pair_up(item, how.against) if isinstance(item, Scored) else [item]
    return items


def name(row: dict[str, Any]) -> str:
    form = recognise(row, Reading())
    return form.name if form else ""


NO_QUESTION = "pairs without a human's first or last turn dropped"
NO_SHARED_PROMPT = "pairs whose sides do not share a prompt dropped"
OUTPUTS = {"instruction": ASK, "output_1": "a", "output_2": "b"}
PKU = {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "is_response_0_safe": True, "better_response_id": 0, "safer_response_id": 1}
HH = f"\n\nHuman: {ASK}\n\nAssistant:"
PLAIN = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
RATED = {"instruction_following": {"Rating": "5"}, "honesty": {"Rating": "1"}}
QUESTION, YES, NO = messages(("user", ASK)), messages(reply(GOOD)), messages(reply(BAD))
WHOLE = {"chosen": QUESTION + YES, "rejected": QUESTION + NO}
COLUMN, BOTH = "the prompt in a column", "the prompt in both sides"
PAIRS: list[tuple[dict[str, Any], str]] = [
    (PLAIN, f"texts, {COLUMN}"),
    ({**PLAIN, "chosen": f"{ASK} {GOOD}", "rejected": f"{ASK}\n{BAD}"}, f"texts, {COLUMN}"),
    ({**PLAIN, "chosen": "It is blue.\r\n"}, f"texts, {COLUMN}"),
    ({"chosen": f"{ASK} blue.", "rejected": f"{ASK} green."}, f"texts, {BOTH}"),
    ({"prompt": QUESTION, "chosen": YES, "rejected": NO}, f"conversations, {COLUMN}"),
    ({"prompt": QUESTION, **WHOLE}, f"conversations, {COLUMN}"),
    ({"prompt": ASK, "messages": [], **WHOLE}, f"conversations, {COLUMN}"),  # UltraFeedback binarized
    (WHOLE, f"conversations, {BOTH}"),
    ({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}, "texts, a conversation as prompt"),
    ({"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"}, f"transcripts, {BOTH}"),
    ({"prompt": HH, "chosen": f" {GOOD}", "rejected": f" {BAD}"}, f"transcripts, {COLUMN}"),
    (
        {"chosen": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}], "rejected": [["user", ASK], ["assistant", BAD]]},
        f"conversations, {BOTH}",
    ),
]


@pytest.mark.parametrize(("row", "spelling"), PAIRS)
def test_pairs(row: dict[str, Any], spelling: str) -> None:
    expected = PAIR
    if row["chosen"] == f"{ASK} blue.":
        expected = Item((("user", ASK),), "blue.", "green.", "blue.")
    assert read(row) == [expected]
    assert name(row) == f"preference pairs: {spelling}"


def test_several_turns_and_a_system_turn() -> None:
    turns = messages(("system", "Be kind."), *LONG)
    row = {"chosen": [*turns, *messages(reply(GOOD))], "rejected": [*turns, *messages(reply(BAD))]}
    assert read(row, system="ignore") == [Item(LONG, GOOD, BAD, GOOD)]
    with pytest.raises(WrongRow, match="rows with a system turn dropped"):
        read(row)
    prompt = messages(*LONG)
    assert read({"prompt": prompt, "chosen": messages(reply(GOOD)), "rejected": messages(reply(BAD))}) == [Item(LONG, GOOD, BAD, GOOD)]
    for prompt in (ASK, "Hello."):  # Tulu's mixture: a text beside whole conversations
        row = {"id": "1", "source": "x", "prompt": prompt, "chosen": messages(*LONG, reply(GOOD)), "rejected": messages(*LONG, reply(BAD))}
        assert read({**row, "chosen_rating": 4.5}) == [Item(LONG, GOOD, BAD, GOOD, 4.5)]
    transcript = f"\n\nHuman: Hello.\n\nAssistant: Yes?{HH}"
    assert read({"chosen": f"{transcript} {GOOD}", "rejected": f"{transcript} {BAD}"}) == [Item(LONG, GOOD, BAD, GOOD)]


def test_a_short_prompt_is_taken_off_only_where_the_file_repeats_prompts() -> None:
    row = {"prompt": "Hi", "chosen": "Hi there.", "rejected": "Hi, you."}
    assert read(row) == [Item((("user", "Hi"),), "Hi there.", "Hi, you.", "Hi there.")]
    assert read(row, repeats=True)[0].chosen == "there."
    assert repeats_prompt([row, row, PLAIN])
    assert not repeats_prompt([row, PLAIN])
    assert not repeats_prompt([])


@pytest.mark.parametrize("shape", ["alpaca", "alpaca_input", "pandalm"])
def test_two_outputs(shape: str) -> None:
    row: dict[str, Any] = {"instruction": ASK, "output_1": BAD, "output_2": GOOD, "generator_1": "a", "preference": 1.8}
    expected = PAIR
    if shape == "alpaca_input":
        row |= {"instruction": "Answer.", "input": ASK, "preference": 1.0, "output_1": GOOD, "output_2": BAD}
        expected = Item((("user", f"Answer.\n\n{ASK}"),), GOOD, BAD, GOOD)
    if shape == "pandalm":
        row = {"instruction": ASK, "input": "", "response1": BAD, "response2": GOOD, "annotator1": 2, "annotator2": 0, "annotator3": 2}
    assert read(row) == [expected]


@pytest.mark.parametrize("preference", [1.5, 0, "1.5"])
def test_ties(preference: Any) -> None:
    row = {"instruction": ASK, "output_1": BAD, "output_2": GOOD, "preference": preference}
    assert read(row) == [Item((("user", ASK),), reason="ties left out")]


def test_ultrafeedback() -> None:
    completions = [
        {"response": BAD, "overall_score": 3.0, "annotations": RATED, "model": "a"},
        {"response": GOOD, "overall_score": 8.5, "annotations": {"honesty": {"Rating": "N/A"}}, "model": "b"},
        {"response": "Grey.", "overall_score": 2, "annotations": {"honesty": {"Rating": "4"}}, "model": "c"},
    ]
    row = {"source": "x", "instruction": ASK, "models": [], "completions": completions, "correct_answers": []}
    assert name(row) == "UltraFeedback: scored completions"
    assert read(row) == [Item((("user", ASK),), GOOD, "Grey.", GOOD, 8.5)]
    assert read(row, score="honesty") == [Item((("user", ASK),), "Grey.", BAD, "Grey.", 4.0)]
    assert read(row, against="drawn")[0].rejected in (BAD, "Grey.")
    assert read(row, against="drawn") == read(row, against="drawn")


def test_the_drawn_opponent_is_one_of_the_lower_ones_and_each_of_them_sometimes() -> None:
    row = {"responses": ["a", "b", "c", "d"], "scores": [1, 4, 3, 4]}
    drawn = {read({"prompt": f"{ASK} {i}", **row}, against="drawn")[0].rejected for i in range(40)}
    assert drawn == {"a", "c"}


def test_helpsteer_and_labels_wait_for_the_prompt_s_other_rows() -> None:
    row = {"prompt": ASK, "response": GOOD, "helpfulness": 4, "correctness": 1, "coherence": 4, "complexity": 2, "verbosity": 2}
    assert name(row) == "responses with attributes, as HelpSteer's"
    form = recognise(row, Reading())
    assert form is not None
    assert [*form.read(row, Reading())] == [Scored((("user", ASK),), ((GOOD, 4.0),))]
    assert [*form.read(row, Reading("correctness"))] == [Scored((("user", ASK),), ((GOOD, 1.0),))]
    assert recognise({"prompt": ASK, "response": GOOD}, Reading()) is None


def test_unpaired_labels_make_as_many_pairs_as_there_are_of_both() -> None:
    scored = Scored((("user", ASK),), ((BAD, 0.0), (GOOD, 1.0), ("Azure.", 1.0), ("Red.", 0.0), ("Cyan.", 1.0)), labels=True)
    assert [(item.chosen, item.rejected) for item in pair_up(scored, "worst")] == [(GOOD, BAD), ("Azure.", "Red.")]
    for label in (True, 1, "True"):
        (item,) = read({"prompt": ASK, "completion": GOOD, "label": label})
        assert item == Item((("user", ASK),), best=GOOD, score=1.0, reason="responses without another to compare with left out")
    talk = {"prompt": messages(("user", ASK)), "completion": messages(reply(BAD)), "label": False}
    assert read(talk)[0].best == BAD


def test_pku_has_an_axis_a_label() -> None:
    helpful, harmless = read(PKU)
    assert (helpful.axis, helpful.chosen, helpful.rejected) == ("helpful", GOOD, BAD)
    assert (harmless.axis, harmless.chosen, harmless.rejected) == ("harmless", BAD, GOOD)


def test_equal_scores_are_a_tie_and_equal_texts_are_once() -> None:
    row = {"prompt": ASK, "responses": ["a", "b"], "scores": [1, 1]}
    assert read(row)[0].reason == "ties left out"
    assert read({**row, "responses": ["a", "a"], "scores": [1, 2]})[0].reason == "responses without another to compare with left out"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PLAIN, "chosen": None}, "rows without chosen dropped"),
        ({**PLAIN, "chosen": 3}, "rows whose chosen is no text dropped"),
        ({**PLAIN, "chosen": "\ud800"}, "rows whose chosen is no text dropped"),
        ({**PLAIN, "chosen": "Yes.\n\nHuman: And?\n\nAssistant: Yes."}, "pairs with a speaker's turn inside an answer dropped"),
        ({**PLAIN, "prompt": " "}, NO_QUESTION),
        ({"chosen": "One.", "rejected": "Two."}, NO_SHARED_PROMPT),
        ({"chosen": "The same.", "rejected": "The same."}, "identical pairs dropped"),
        ({"chosen": f"{HH} a", "rejected": "\n\nHuman: Else?\n\nAssistant: b"}, NO_SHARED_PROMPT),
        ({"chosen": f"{HH} a", "rejected": "b"}, "transcripts without an assistant's turn dropped"),
        ({"chosen": [], "rejected": []}, NO_QUESTION),
        ({**WHOLE, "rejected": messages(("user", "c"), reply("d"))}, NO_SHARED_PROMPT),
        ({"chosen": QUESTION, "rejected": QUESTION}, "pairs with a side that does not end with an assistant's turn dropped"),
        ({"prompt": "x", **WHOLE}, "pairs whose sides begin with another prompt than theirs dropped"),
        ({**WHOLE, "chosen": messages(("tool", "a"))}, "rows with a turn of neither user nor assistant dropped"),
        ({**OUTPUTS, "preference": None}, "rows whose preference is no number dropped"),
        ({**OUTPUTS, "preference": 3}, "rows whose preference is neither 0 nor between 1 and 2 dropped"),
        (
            {"instruction": ASK, "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2},
            "rows without a majority of annotators dropped",
        ),
        ({"prompt": ASK, "responses": ["a"], "scores": []}, "rows with another number of scores than of responses dropped"),
        ({"prompt": ASK, "responses": "a", "scores": []}, "rows whose responses is no list dropped"),
        ({"instruction": ASK, "completions": [{"response": "a"}]}, "rows without a scored response dropped"),
        ({"instruction": ASK, "completions": [{"response": "a", "annotations": True}]}, "rows without a scored response dropped"),
        ({"instruction": ASK, "completions": ["a"]}, "rows with a completion that is no object dropped"),
        ({"prompt": ASK, "completion": "a", "label": "good"}, "rows whose label is neither true nor false dropped"),
        ({"prompt": ASK, "response": "a", "helpfulness": True}, "rows whose helpfulness is no number dropped"),
        ({**PKU, "better_response_id": 2}, "rows whose better_response_id is neither 0 nor 1 dropped"),
    ],
)
def test_wrong_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(WrongRow) as error:
        read(row)
    assert str(error.value) == reason


def test_columns_of_no_form() -> None:
    assert name({"prompt": ASK, "answer": GOOD}) == ""
