"""Sets of prompts that are only asked: no method sees them, and nothing is chosen by them."""

from typing import Any, Literal

from pydantic import Field, field_validator

from apo_bench.config.schema.values import Section

RULE = "rule"
SetScorer = Literal["refusal", "gold", "judge"]


class PromptSet(Section):
    """Prompts out of files as people have them, which policies answer: an axis of its own, in no pooled number and no declared test."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """the set's name, which is its axis: letters, digits, `_`, `-`; no axis of the task"""

    data_files: tuple[str, ...] = Field(min_length=1)
    """files beside the experiment file: AlpacaEval, Arena-Hard, MT-Bench, WildBench, XSTest, HarmBench, or any with `prompt` or
    `messages`; recognised by their columns"""

    columns: dict[str, str] = Field(default={})
    """our name of a column: the file's, such as `{prompt: question}`"""

    scorers: tuple[SetScorer, ...] = ("gold", "judge")
    """what scores the answers: the share of refusals, the gold models, the experiment's judges"""

    round: Literal["final", "all"] = "final"
    """which rounds are evaluated: the initial policy and each arm's last, or all of them; comparisons are at the last"""

    turns: Literal["first", "both"] = "both"
    """of questions with several turns: only the first, or also the second, asked after the policy's own first answer"""

    axis: str | None = None
    """the task's axis that reward models and judges take these prompts for; `null`: the mean over the task's axes, and overall quality"""

    prompts: int | None = Field(default=None, ge=2)
    """how many prompts, as evenly over the labels as they allow; `null`: all"""

    refusal_by: str = RULE
    """what tells refusals: `rule`, or the name of a chat judge under `judges`"""

    refusal_labels: str | None = None
    """a file of labelled answers (`response`, `refusal`: true or false, and perhaps `prompt`) that the recall and the false-positive rate
    of what tells refusals are measured on; `null`: the examples that apo-bench brings"""

    @field_validator("data_files", mode="before")
    @classmethod
    def _a_name_is_a_list_of_it(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value  # strict from here on
