"""The question: which contrasts are tested, on which scores."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from apo_bench.config.schema.values import Match, Section, distinct


class Comparison(Section):
    """Two arms, tested against each other."""

    a: str
    """the arm whose advantage is tested"""

    b: str
    """the arm it is compared with"""

    matched: tuple[Match, ...] = ()
    """what both should have spent equally; the report's first lines name what was not"""


class Compare(Section):
    """The contrasts that answer the experiment's question."""

    primary: tuple[Comparison, ...] = Field(min_length=1)
    """contrasts that are declared before the run, tested, and corrected together"""

    secondary: tuple[Comparison, ...] = ()
    """further contrasts, tested apart"""

    scorer: str = "gold"
    """`gold`: the first gold model, as the mean over its seeds; or a gold model's name, `ground_truth` or `judge/NAME`"""

    axes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)] = ("all",)
    """axes of the primary family; `all` pools them"""

    round: Literal["final", "dev_best"] = "final"
    """which round is compared: the last, or each arm-seed's round of the highest dev score"""

    matched_kl: bool = False
    """add contrasts where both arms are equally far from the initial policy"""

    curves: dict[str, Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)]] = Field(default={})
    """named lists of arms, drawn by the annotation they bought"""

    stopping: Literal["fixed", "anytime"] = "fixed"
    """`fixed`: the number of seeds is fixed before results are seen; `anytime`: seeds may be added after any look, for wider intervals
    (confidence sequences over paired seeds)"""

    correction: Literal["holm"] = "holm"
    """correction of the primary family's p-values"""

    @model_validator(mode="after")
    def _distinct_pairs(self) -> Self:
        distinct([f"{pair.a} against {pair.b}" for pair in self.primary + self.secondary])
        return self
