"""Pages written from the code: up to date, complete, and readable."""

import re
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field

from apo_bench.cli import generate_docs
from apo_bench.config import schema as config


@pytest.mark.parametrize("path", generate_docs.pages(), ids=lambda path: path.name)
def test_a_page_is_what_the_code_says(path: Any) -> None:
    assert path.read_text(encoding="utf-8") == generate_docs.pages()[path], "stale; run: python -m apo_bench.cli.generate_docs"


def test_every_key_of_an_experiment_has_a_meaning() -> None:
    fields = {
        f"{model.__name__}.{name}": field for model in generate_docs.models(config.Experiment) for name, field in model.model_fields.items()
    }
    assert len(fields) > 80
    assert not [name for name, field in fields.items() if not field.description]


def test_sections_have_their_places() -> None:
    """By hand: a list's items are N, a mapping's NAME, and a model that stands twice has two places."""
    places = generate_docs.places(config.Experiment)
    assert places[config.Experiment] == [""]
    assert places[config.Comparison] == ["compare.primary.N", "compare.secondary.N"]
    assert places[config.MatchSpend] == ["arms.NAME.fit"]
    members = ["models.reward.of.N", "models.gold.N.model.of.N"]  # of an ensemble
    assert sorted(places[config.NgramReward]) == sorted(["models.reward", "models.gold.N.model", *members])


def test_every_section_is_on_the_page_once() -> None:
    page = generate_docs.experiment_page()
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert sections == [*(model.__name__ for model in generate_docs.models(config.Experiment)), "Units"]
    assert {f"#{name.lower()}" for name in sections} >= set(re.findall(r"\((#\w+)\)", page))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (float | None, "number or `null`"),
        (config.Seed, "whole number (0 or more, below 4294967296)"),
        (Annotated[float, Field(gt=0, le=1)], "number (above 0, at most 1)"),
        (tuple[str, ...], "list of texts"),
        (tuple[int, int], "list of 2: whole number, whole number"),
        (Literal["a", "b"], '`"a"` or `"b"`'),
        (dict[str, Any], "mapping"),
        (dict[config.Unit, float], "mapping of [unit](#units) to number"),
        (config.Lora | None, "[Lora](#lora) or `null`"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert generate_docs.kind(annotation) == words


def test_every_command_and_option_is_on_its_page() -> None:
    """As typer itself lists them."""
    from apo_bench.cli.main import app

    group: Any = typer.main.get_command(app)
    page = generate_docs.cli_page()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(group.commands)
    for command in group.commands.values():
        for parameter in command.params:
            if parameter.name != "help" and parameter.opts[0].startswith("--"):
                assert f"`{parameter.opts[0]}" in page


def test_every_public_name_is_on_its_page() -> None:
    page = generate_docs.api_page()
    assert list(generate_docs.API) == re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert "### Lab\n" in page
    assert "def sample(" in page
    from apo_bench import lab, stats

    assert set(re.findall(r"^### (.+)$", page, re.MULTILINE)) >= {*stats.__all__, *lab.__all__}


def test_a_package_shows_what_it_exports() -> None:
    """Also an alias, and names from where they are defined."""
    outlines = dict(generate_docs.public("apo_bench.lab"))
    assert outlines["Count"].startswith("Count = Annotated[int, Ge(1)]")
    assert outlines["best_of"].startswith("def best_of(groups")
    assert list(dict(generate_docs.public("apo_bench.errors", ["NotHere"]))) == ["NotHere"]
    with pytest.raises(KeyError):
        list(generate_docs.public("apo_bench.errors", ["absent"]))


def test_an_outline_has_signature_docstring_and_fields() -> None:
    """Of a class also its public methods; no body, and nothing private."""
    source = '''
@decorated
class A:
    """Doc."""

    x: int = 1  # why
    """The first."""
    y: int

    def public(self, a: int) -> int:
        """More."""
        return a

    def bare(self) -> None: ...

    def _private(self) -> None:
        """Hidden."""


def f(a: int) -> int:
    return a


def _g() -> None:
    pass
'''
    assert dict(generate_docs.outlines(source)) == {
        "A": '@decorated\nclass A:\n    """Doc."""\n\n    x: int = 1  # why\n    """The first."""\n    y: int\n\n'
        '    def public(self, a: int) -> int:\n        """More."""\n\n    def bare(self) -> None: ...',
        "f": "def f(a: int) -> int:",
    }
    with pytest.raises(KeyError):
        list(generate_docs.outlines(source, ("absent",)))
