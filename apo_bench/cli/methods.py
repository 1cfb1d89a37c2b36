"""`apo-bench methods`: what an experiment or a method can name, described by the code itself."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from apo_bench.package_data import shipped_root

Kind = Literal["method", "loss", "online algorithm", "reward loss"]
HEADINGS: Mapping[Kind, str] = {
    "method": "Methods, as `use` names them",
    "loss": "Losses of policies, as `loss` names them",
    "online algorithm": "Online algorithms, as `algorithm` names them",
    "reward loss": "Losses of reward models, for a method of your own",
}
READS = {  # a method's verb of the Lab -> the data that it reads
    "pairs": "human pairs", "golden": "golden responses", "sample": "samples", "train_online": "samples", "train_with_trl": "samples",
}  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """Something that can be named: `name` as an experiment spells it, and what its docstring and code tell of it.

    `paper`: of the first citation, else arXiv ids. `reads`: data; of losses as in `reads`. `reference`, `reward_model`: "yes", "" or a
    condition. `player`: whether it can be APO's `player`.
    """

    kind: Kind
    name: str
    purpose: str
    paper: str
    reads: str
    reference: str
    reward_model: str
    player: bool = False

    @property
    def needs(self) -> str:
        """What it needs beside its data, in words."""
        reference = f"a reference ({self.reference})" if self.reference == "by its loss" else "a reference" if self.reference else ""
        return ", ".join(filter(None, (reference, self.reward_model and "a reward model")))


def listing() -> list[Listed]:
    """Shipped methods, losses of policies, online algorithms, losses of reward models."""
    return [*methods(), *losses(), *algorithms(), *reward_losses()]


def methods() -> Iterator[Listed]:
    """APO, then the classes of `baselines/` that have `run(lab)` or `update(lab, ...)`."""
    from apo_bench import apo
    from apo_bench.config.python_files import load_python_file

    yield from _methods_of(apo, "apo_bench.apo")
    for path in sorted((shipped_root() / "baselines").glob("[!_]*.py")):
        yield from _methods_of(load_python_file(path), f"baselines/{path.name}")


def _methods_of(module: ModuleType, place: str) -> Iterator[Listed]:
    for name, cls in _dataclasses_of(module).items():
        if not (hasattr(cls, "run") or hasattr(cls, "update")):
            continue
        source = _source(module, cls)
        verbs = re.findall(r"\blab\.(\w+)\(", source)
        reads = dict.fromkeys(READS[verb] for verb in READS if verb in verbs)
        reference = "by its loss" if "needs_reference" in source else "yes" if "reference=" in source else ""
        reward_model = "yes" if "train_reward_model" in verbs or "reward_model:" in source else ""
        text = f"{inspect.getdoc(module)}\n\n{inspect.getdoc(cls)}"
        yield Listed(
            "method", f"{place}@{name}", purpose(text), citation(text), ", ".join(reads), reference, reward_model, hasattr(cls, "update")
        )


def losses() -> Iterator[Listed]:
    from apo_bench.losses import SHIPPED

    yield from (_loss("loss", name, cls) for name, cls in SHIPPED.items())


def algorithms() -> Iterator[Listed]:
    from apo_bench.losses import ALGORITHMS

    yield from (_loss("online algorithm", name, cls) for name, cls in ALGORITHMS.items())


def _loss(kind: Kind, name: str, cls: Callable[[], Any]) -> Listed:
    loss, text = cls(), inspect.getdoc(cls) or ""
    reference, scored = ("yes" if flag else "" for flag in (loss.needs_reference, loss.reads in ("groups", "rollouts")))
    return Listed(kind, name, purpose(text), citation(text), loss.reads, reference, scored)


def reward_losses() -> Iterator[Listed]:
    from apo_bench.losses import reward

    for name, cls in _dataclasses_of(reward).items():
        text = inspect.getdoc(cls) or ""
        yield Listed("reward loss", f"{reward.__name__}@{name}", purpose(text), citation(text), "pairs", "", "")


def purpose(docstring: str) -> str:
    """The docstring's first line, without its citation and its end."""
    line = docstring.partition("\n")[0]
    cited = _cited(line)
    return (line.replace(f" ({cited})", "") if cited else line).rstrip(".")


def citation(docstring: str) -> str:
    """What the first paragraph cites in parentheses, else the arXiv ids of the docstring."""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return _cited(first) or ", ".join(dict.fromkeys(re.findall(r"arXiv:\d{4}\.\d{5}", docstring)))


def _cited(text: str) -> str:
    match = re.search(r"\(([^()]*(?:arXiv:|\.pdf|\b(?:19|20)\d\d\b)[^()]*)\)", text)
    return match[1] if match else ""


def _dataclasses_of(module: ModuleType) -> Mapping[str, Any]:
    """The public dataclasses that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _source(module: ModuleType, cls: type) -> str:
    """The code of a method's file and of what it takes over from players; not of another player that it may hold."""
    from apo_bench.lab import player

    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    text += "".join(inspect.getsource(base) for base in cls.__mro__ if base.__module__ == player.__name__)
    return text + (inspect.getsource(player.play_alone) if "play_alone(lab, self," in text else "")
