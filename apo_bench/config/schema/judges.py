"""Judges, and what they compare."""

from typing import Literal, Self

from pydantic import Field, model_validator

from apo_bench.config.schema.values import CLASS, PluginChoice, Section


class JudgeChoice(PluginChoice):
    """A judge and its parameters."""

    use: str = Field(pattern=CLASS)
    """the judge, as module@Class or file.py@Class"""


class Judging(Section):
    """Which responses the judges compare: the same for every judge, in both orders, at `compare.round`."""

    pairs: Literal["declared", "round_robin", "reference"] = "declared"
    """which arms meet: the declared comparisons, every two arms, or all arms against `reference`"""

    reference: str | None = None
    """the arm that all others meet, with `pairs: reference`"""

    seeds: Literal["same", "next"] = "same"
    """which policies of two arms meet: those of the same seed, or arm a's of one seed and arm b's of the next in the experiment's list"""

    prompts: int | None = Field(default=None, ge=2)
    """how many of the answered prompts are judged, as evenly over the axes as they allow; `null`: all"""

    audit_pairs: int = Field(default=200, ge=0)
    """held-out human pairs that each judge is audited on; 0: none"""

    attacks: bool = True
    """also audit with attacks planted in those pairs"""

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if (self.pairs == "reference") != (self.reference is not None):
            raise ValueError("reference goes with pairs: reference, and only with it")
        return self
