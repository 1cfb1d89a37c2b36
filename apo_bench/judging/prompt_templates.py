"""The wording of questions to judges, from versioned files in `prompts/`.

A file has a system part and a user part. A published version is never edited; a change is a new version. The conversation and the
responses are fenced by a code that occurs in none of them, so that no text can close its fence.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from apo_bench.clients.fences import CRITERIA, fenced_messages, parts_of
from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.judging.answer_parsing import LABELS
from apo_bench.judging.judge_protocol import Question

PROMPTS = Path(__file__).with_name("prompts")
NAMES = tuple(sorted(path.stem for path in PROMPTS.glob("*.txt")))
BY_AXIS = {"by_axis": "{}.v1", "by_axis.reasoned": "{}.reasoned.v1"}


@dataclass(frozen=True)
class Template:
    """A question's wording. `digest` is the hash of its file, `labels` are the names of the two responses.

    `system` is the same for every question, so that a server can cache its prefix.
    """

    name: str
    digest: str
    reasoned: bool
    system: str
    user: str
    labels: tuple[str, str] = LABELS

    def messages(self, question: Question) -> list[dict[str, str]]:
        """The system and the user message, each a role and its content."""
        return fenced_messages(self.system, self.user, question.prompt, {"first": question.first, "second": question.second})


def template_for(choice: str, axis: str) -> Template:
    """The template that `choice` names for a prompt's axis.

    "by_axis" and "by_axis.reasoned" ask about helpfulness or harmlessness on the axes of that name, and about overall quality on any other
    axis; any other choice is a template's name. Raises InputError for an unknown one.
    """
    return load_template(BY_AXIS[choice].format(CRITERIA.get(axis, "overall")) if choice in BY_AXIS else choice)


def templates_of(choice: str) -> tuple[Template, ...]:
    """Every template that `choice` may mean, by name; all are part of a judge's identity. Raises InputError as `template_for`."""
    templates = {template_for(choice, axis) for axis in (*CRITERIA, "")}
    return tuple(sorted(templates, key=lambda template: template.name))


@cache
def load_template(name: str) -> Template:
    """The template of this name, such as "overall.v1" or "helpfulness.reasoned.v1". Raises InputError for an unknown one."""
    if name not in NAMES:
        raise InputError(f"template: no template named {name!r}; there are: {', '.join((*BY_AXIS, *NAMES))}")
    return parse_template(name, (PROMPTS / f"{name}.txt").read_text(encoding="utf-8"))


def parse_template(name: str, text: str) -> Template:
    """A template from its file's text."""
    return Template(name, digest(text), ".reasoned." in name, *parts_of(text))
