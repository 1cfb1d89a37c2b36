"""What the sections of an experiment file have in common: refusal of unknown keys, names, seeds, units and budgets."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Unit = Literal[
    "human_pairs", "golden_responses", "sampled_responses", "sampled_tokens", "scored_responses", "scored_tokens",
    "rm_updates", "rm_train_tokens", "policy_updates", "policy_train_tokens", "flops",
]  # fmt: skip
Match = Literal["annotation", "samples", "updates", "flops"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"  # also the name of a file or folder, with room for more in its 255 letters
CLASS = r"^[^@]+@[A-Za-z_]\w*$"  # module@Class or file.py@Class
JUDGE = "judge/"  # before a judge's name, where it is the scorer
WHOLE = "whole file"  # the context of a dump that also has what changes no result


class Section(BaseModel):
    """A section of the file: frozen, without unknown keys; a field's docstring is its description in the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class PluginChoice(BaseModel):
    """A class to use, and its parameters: every key that is not a field here is one of that class's fields."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def distinct(values: Any) -> Any:
    """The values. Raises ValueError if one occurs twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} occurs twice")
        seen.add(value)
    return values


def _not_negative(budget: dict[str, float]) -> dict[str, float]:
    for unit, value in budget.items():
        if not value >= 0:
            raise ValueError(f"{unit}: a budget is 0 or more, got {value}")
    return budget


Budget = Annotated[dict[Unit, float], AfterValidator(_not_negative)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both accept
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)]
