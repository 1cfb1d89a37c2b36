"""What is compared: arms, how they are tuned or sized, and the controls beside them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from apo_bench.config.schema.values import CLASS, Budget, PluginChoice, Section, Seeds, Unit


class MatchSpend(Section):
    """Sizes an arm to spend what another does: a parameter of its method is solved for."""

    unit: Unit = "flops"
    """what both arms are to spend equally; not annotation, which the budget sets"""

    to: str
    """the arm whose spending is matched"""

    by: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
    """dotted name of the parameter, such as `samples_per_prompt`, `epochs` or `player.rounds`"""


class Arm(PluginChoice):
    """A method and its parameters."""

    use: str = Field(pattern=CLASS)
    """the method, as module@Class or file.py@Class"""

    budget: Budget = Field(default={})
    """units that replace those of the experiment's budget for this arm: what a control may spend more of, or a budget curve less"""

    fit: MatchSpend | None = None
    """size the arm by another; `null`: parameters are as they stand"""


class Tune(Section):
    """Equal tuning for all arms: the same number of trials, each drawn from the arm's own grid and judged on dev prompts."""

    trials: int = Field(ge=2)
    """trials of each arm"""

    by: Literal["referee", "ground_truth"] = "referee"
    """what judges a trial: the referee's score, or a simulated task's ground truth, to choose settings in a world that no result is
    reported for and to see what the referee's choice would have cost"""

    max_kl: float | None = Field(default=None, gt=0)
    """KL divergence from the initial policy, in nats on dev prompts, beyond which a trial is never chosen, since far away a referee is
    fooled; `null`: no limit"""

    seeds: Seeds = (1000,)
    """training seeds of the trials, none of which may be the experiment's"""

    grids: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(min_length=1)
    """for every arm: dotted parameters, such as `player.learning_rate`, and the values to try"""


class Controls(Section):
    """Arms that show what this run can tell apart. They belong to no family of tests, and their scores choose nothing."""

    aa: bool = False
    """run the reference again under seeds of its own: the difference that nothing makes"""

    oracle: bool = False
    """add the best of `oracle_n` responses of the reference's final policy, by the truth or, where the task has none, by a gold model that
    does not score: not a fair arm, but a difference that is there; and the same on fewer prompts, a diluted oracle"""

    reference: str | None = None
    """the arm that the controls are made of; `null`: `b` of the first primary comparison"""

    oracle_n: int = Field(default=8, ge=2)
    """responses that the oracle chooses from"""

    effect: float | None = Field(default=None, gt=0)
    """the diluted oracle's difference, in the scorer's units; `null`: the smallest that the run can detect"""
