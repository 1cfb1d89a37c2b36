"""The shipped judges with their parameters, as `--help` and docs/judging.md list them."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields

from apo_bench.judging.chat_judge import ChatJudge
from apo_bench.judging.local_judge import LocalJudge
from apo_bench.judging.reward_judge import RewardModelJudge
from apo_bench.judging.simulated_judge import SimulatedJudge

JUDGES = (ChatJudge, LocalJudge, RewardModelJudge, SimulatedJudge)


@dataclass(frozen=True)
class JudgeParameters:
    """`use` names the judge; `parameters` by name with their defaults as JSON, None where one is needed; `about` is its docstring."""

    use: str
    parameters: dict[str, str | None]
    about: str

    @property
    def line(self) -> str:
        """The judge in a line: what is needed first, then defaults."""
        return f"{self.use}: {', '.join(name if value is None else f'{name}={value}' for name, value in self.parameters.items())}"


def judge_parameters() -> Iterator[JudgeParameters]:
    for judge in JUDGES:
        given = {part.name: part.default if part.default_factory is MISSING else part.default_factory() for part in fields(judge)}
        parameters = {name: None if value is MISSING else json.dumps(value) for name, value in given.items()}
        yield JudgeParameters(f"{judge.__module__}@{judge.__name__}", parameters, inspect.getdoc(judge) or "")
