"""What an arm may spend, and what it spent.

Human pairs and golden responses are stocks: each distinct item counts once, however often it is used. All other units are
flows, added per use. Equal work done once and shared by several arms is charged to each of them in full.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, get_args

from apo_bench.config.schema import Unit
from apo_bench.errors import BudgetExceeded

UNITS: tuple[Unit, ...] = get_args(Unit)
K = TypeVar("K")
STOCKS: tuple[Unit, ...] = ("human_pairs", "golden_responses")


class Ledger:
    """One arm-seed's account. A unit known beforehand is admitted, then charged; the others are settled at the next verb."""

    def __init__(self, arm: str, budget: Mapping[Unit, float]) -> None:
        self.arm = arm
        self.budget = dict(budget)
        self._flows: dict[Unit, float] = {unit: 0.0 for unit in UNITS if unit not in STOCKS}
        self._elsewhere: dict[Unit, float] = dict.fromkeys(STOCKS, 0.0)  # taken for finished policies; NaN: not known
        self._seen: dict[Unit, set[str]] = {unit: set() for unit in STOCKS}

    @property
    def used(self) -> dict[Unit, float]:
        """Amount used of every unit."""
        return {unit: len(self._seen[unit]) + self._elsewhere[unit] if unit in STOCKS else self._flows[unit] for unit in UNITS}

    @property
    def seen(self) -> dict[Unit, set[str]]:
        """The items of each stock that were taken."""
        return self._seen

    def left(self, unit: Unit) -> float:
        """What the budget leaves of a unit; infinite where none is set."""
        return self.budget.get(unit, float("inf")) - self.used[unit]

    def admit(self, **amounts: float) -> None:
        """Raise BudgetExceeded if one of these amounts would overdraw its unit. Charges nothing."""
        for unit, amount in amounts.items():
            if amount > self.left(unit):  # pyright: ignore[reportArgumentType]
                raise BudgetExceeded(self.arm, unit, amount, self.left(unit))  # pyright: ignore[reportArgumentType]

    def charge(self, amounts: Mapping[str, float]) -> None:
        """Add amounts to flows, and to stocks what was taken elsewhere; other keys are counts of something else and are left alone."""
        for part in (self._flows, self._elsewhere):
            for unit in part:
                part[unit] += amounts.get(unit, 0.0)

    def see(self, unit: Unit, ids: Iterable[str]) -> None:
        """Take items into a stock. Raises BudgetExceeded before any is taken."""
        new = set(ids) - self._seen[unit]
        self.admit(**{unit: len(new)})
        self._seen[unit] |= new

    def settle(self) -> None:
        """Raise BudgetExceeded if a unit that could not be known beforehand turned out overdrawn."""
        for unit in self.budget:
            if self.left(unit) < 0:
                raise BudgetExceeded(self.arm, unit, self.used[unit], self.budget[unit])


def marginals(
    spent: Iterable[tuple[K, Mapping[str, Mapping[str, float]], Mapping[Any, Collection[str]]]],
) -> dict[K, dict[Unit, float]]:
    """What each had to make or buy because nobody before it had: key -> unit -> amount.

    spent: in order, (key, artifacts charged with their counts, items seen of each stock).
    """
    computed, bought, added = set[str](), {unit: set[str]() for unit in STOCKS}, {}
    for key, charged, seen in spent:
        new = [counts for name, counts in charged.items() if name not in computed]
        flows: dict[Unit, float] = {unit: sum(counts.get(unit, 0.0) for counts in new) for unit in UNITS}
        added[key] = flows | {unit: flows[unit] + float(len(set(seen[unit]) - bought[unit])) for unit in STOCKS}
        computed |= charged.keys()
        bought = {unit: bought[unit] | set(seen[unit]) for unit in STOCKS}
    return added
