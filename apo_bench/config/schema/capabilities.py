"""Tasks of lm-evaluation-harness beside the experiment's own: what did alignment cost?"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from apo_bench.config.schema.values import Section, distinct


class Capabilities(Section):
    """lm-eval tasks that each arm-seed's final policy and the initial policy are run on, item by item. Needs the `lm-eval` extra."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)]
    """names of tasks, groups or tags, of lm-eval's own or of `include_path`"""

    include_path: str | None = None
    """a folder of task files (YAML), beside the file, in the working directory or shipped; their `data_files` are relative to the working
    directory, as in lm-eval, or to the task's own file"""

    limit: int | None = Field(default=200, ge=2)
    """the first so many items of each task; `null`: all"""

    margin: float = Field(default=0.05, gt=0)
    """the loss of a task's mean score, in the score's unit, that an arm has to be shown to stay below"""

    metrics: dict[str, str] = Field(default={})
    """the metric that a task is judged by, as lm-eval's results name it, such as `gsm8k: "exact_match,flexible-extract"`; a task that is
    not named: the first that it has a number for of each item"""

    num_fewshot: int | None = Field(default=None, ge=0)
    """examples before each item; `null`: as the task has it"""

    apply_chat_template: bool = False
    """ask in the policy's own chat template, with its `system_prompt` and `chat_template_kwargs`; else in plain text, as base models"""

    batch_size: int = Field(default=16, ge=1)
    """requests at a time"""

    metadata: dict[str, Any] = Field(default={})
    """given to the tasks, as lm-eval's `--metadata`; options of the experiment's own task stand there already, under the task's name"""

    @property
    def changes_scores(self) -> dict[str, Any]:
        """The settings that change an item's score, JSON-ready, without the path."""
        return self.model_dump(mode="json", exclude={"margin", "metrics", "include_path"})
