"""Conversations to token ids, in a model's own chat format, for policies, reward models and local judges.

Nothing else renders a chat template. The template decides how a prompt reads, what an answer begins with and what ends it. Control tokens
are the template's own: spelled out in a text, they are text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date as Date
from datetime import datetime, time
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from jinja2 import TemplateError

from apo_bench.config.schema import PolicyModel
from apo_bench.errors import InputError
from apo_bench.models.model_folder import refusing
from apo_bench.types import Prompt

PAD = "<|apo_pad|>"
HUMAN_TURN = "\n\nHuman:"
SPEAKERS = {"user": "Human", "assistant": "Assistant"}  # in the transcripts of Anthropic's HH data
THOUGHT, CLOSED_THOUGHT = "<think>", "\n</think>\n\n"
UNDATED = Date(2025, 1, 1)  # a template's today, where nobody names a day
CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<form>.*?)(?P=quote)\s*\)""")
PROBE = "zxqj"  # stands for an answer
MASK = 0xF0000  # a private plane of Unicode: control token number n in a text is chr(MASK + n) while a template is rendered
MASKED = re.compile(f"[{chr(MASK)}-{chr(MASK + 0xFFFD)}]")
Turn = Mapping[str, str]  # role and content


@dataclass(frozen=True)
class Encoded:
    """Token ids, and whether something was cut off their left."""

    ids: list[int]
    truncated: bool = False


class _NoSystemTurn(InputError):
    """A chat template refuses a system turn, or leaves it out."""


class End(NamedTuple):
    """What a template writes after an answer, up to the token that ends the turn, and that token's id."""

    text: str
    id: int


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """A tokenizer whose padding token is its own, never a token that a text can have.

    Raises InputError where there is none that can be read.
    """
    from transformers import AutoTokenizer

    with refusing(folder) if Path(folder).exists() else nullcontext():  # what the hub lacks, or cannot be reached, is an OSError
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    in_texts = [getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "unk", "sep", "cls")]
    if tokenizer.pad_token_id in (None, *in_texts):
        tokenizer.add_special_tokens({"pad_token": PAD})
    for name in ("is_local", "local_files_only"):  # how it was loaded is no part of what it is, and would be saved with it
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


@dataclass(frozen=True)
class ChatFormat:
    """How a model reads conversations: its tokenizer, with the settings of its chat template.

    `system_prompt`: the turn before every conversation; "", too, keeps a template's default out, and None leaves it to the template.
    `template_kwargs` go to the template. `date`: what the template takes for today.

    Methods raise InputError, one line, where a template refuses a conversation or leaves a part of it out.
    """

    tokenizer: Any
    system_prompt: str | None = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: Date | None = None

    @classmethod
    def of(cls, tokenizer: Any, spec: PolicyModel) -> "ChatFormat":
        """A policy's; a reward model's is `reward.chat_format`."""
        return cls(tokenizer, spec.system_prompt, spec.chat_template_kwargs, spec.template_date)

    # --- what models read ------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: Prompt, max_tokens: int) -> Encoded:
        """The ids that a policy continues. Too long a conversation loses its oldest turns, then the left of the last one."""
        return _fitted(lambda turns: self._read(turns, self._prompt_text), _turns(prompt), max_tokens, "max_prompt_tokens")

    def encode_response(
        self, prompt: Prompt, text: str, max_tokens: int, token_ids: Sequence[int] | None = None, *, cut: bool = False
    ) -> list[int]:
        """A response's ids after those of its prompt, up to the end of its turn; or `token_ids`, which it was sampled as.

        A response that was cut at a length limit (`cut`) has no end, nor has one that is too long and cut here, on the right.
        """
        if token_ids is not None:
            return list(token_ids)[:max_tokens]
        turns = _turns(prompt)[-1:]  # how an answer reads does not depend on earlier turns
        before, whole = self._prompt_text(turns), self._answered_text(turns, text, cut=cut)
        start, ids = self._ids(before), self._ids(whole)
        if whole.startswith(before) and ids[: len(start)] == start:
            ids = ids[len(start) :]
        elif whole.startswith(before):  # the tokens do not part where the texts do
            ids = self._ids(whole[len(before) :])
        else:  # a generation prompt that the template does not write before answers: it opens a thought
            ids = self._ids(f"{CLOSED_THOUGHT if _is_thinking(before) else ''}{self._mask(text)}{self._end_text(cut)}")
        return [*ids, *self._added_end(cut)][:max_tokens]

    def encode_scored(
        self, prompt: Prompt, response: str, max_tokens: int, *, axis_input: bool = False, cut: bool = False, whole: bool = False
    ) -> Encoded:
        """The ids that a reward model reads: the conversation with the response; `axis_input`: after the axis's name.

        They stop at the end of the response's turn, which a response that was cut at a length limit (`cut`) does not have. `whole`: all
        that the template writes, as models from elsewhere read it. What is too long loses its oldest turns, then the left of the last.
        """
        turns = [*_turns(prompt), {"role": "assistant", "content": response}]
        if axis_input:
            turns.insert(0, {"role": "system", "content": "\n\n".join(filter(None, (prompt.axis, self.system_prompt)))})

        def encode(turns: Sequence[Turn]) -> list[int]:
            *conversation, answer = turns
            ids = self._read(conversation, lambda turns: self._answered_text(turns, answer["content"], cut=cut, whole=whole))
            after = [] if self._is_templated else self._added_specials[1]
            if cut and self.tokenizer.eos_token_id not in (self.tokenizer.sep_token_id, self.tokenizer.cls_token_id):
                after = [token for token in after if token != self.tokenizer.eos_token_id]
            return [*ids, *(after or ([] if whole else self._added_end(cut)))]

        try:
            return _fitted(encode, turns, max_tokens, "max_tokens", last=2)
        except _NoSystemTurn as error:
            raise (InputError(f"axis_input: {error}; use axis_heads") if axis_input else error) from None

    def encode_question(self, system: str, user: str, answer: str = "") -> list[int]:
        """The ids of a system and a user turn up to where the answer begins, and of the answer's beginning. No thought is left open.

        A template that refuses or drops a system turn gets it at the start of the user's.
        """
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        together = [{"role": "user", "content": f"{system}\n\n{user}"}]
        try:
            text = self._prompt_text(turns if self._is_templated else together)
        except _NoSystemTurn:
            text = self._prompt_text(together)
        return self._read(turns, lambda _: text + (CLOSED_THOUGHT if _is_thinking(text) else "") + answer)

    # --- the end of a turn -----------------------------------------------------------------------------------------------

    @cached_property
    def end_id(self) -> int:
        """The token that ends a response: what the template puts after an answer; if that has none, the end-of-sequence token.

        Raises InputError where there is neither.
        """
        if self._template_end is not None:
            return self._template_end.id
        if self.tokenizer.eos_token_id is None:
            raise InputError("tokenizer: it has no end-of-sequence token, and no chat template that ends turns with a token")
        return self.tokenizer.eos_token_id

    @cached_property
    def _tail(self) -> str:
        """All that the template writes after the last answer."""
        return self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]).rpartition(PROBE)[2]

    @cached_property
    def _template_end(self) -> End | None:
        first = self._control.search(self._tail) if self._is_templated else None
        return End(self._tail[: first.end()], self.tokenizer.convert_tokens_to_ids(first.group())) if first else None

    def _end_text(self, cut: bool) -> str:
        return "" if cut or self._template_end is None else self._template_end.text

    def _added_end(self, cut: bool) -> list[int]:
        """The end of a response that no template ends."""
        return [] if cut or self._template_end is not None else [self.end_id]

    # --- texts -----------------------------------------------------------------------------------------------------------

    @property
    def _is_templated(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def _prompt_text(self, turns: Sequence[Turn]) -> str:
        """A conversation up to where an answer begins."""
        if self._is_templated:
            return self._render(turns, add_generation_prompt=True)
        return f"{self._transcript(turns)}\n\nAssistant:"

    def _answered_text(self, turns: Sequence[Turn], answer: str, *, cut: bool = False, whole: bool = False) -> str:
        """A conversation with an answer, up to its end, to its last word (`cut`), or with all that the template writes (`whole`)."""
        if not self._is_templated:
            return f"{self._transcript(turns)}\n\nAssistant: {self._mask(answer)}"
        text = self._render([*turns, {"role": "assistant", "content": answer}])
        return text.removesuffix(self._tail) + (self._tail if whole and not cut else self._end_text(cut))

    def _render(self, turns: Sequence[Turn], **options: Any) -> str:
        """The conversation in the template's form, control tokens in contents masked."""
        if turns[0]["role"] != "system" and self.system_prompt is not None:
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        turns = [{"role": turn["role"], "content": self._mask(turn["content"])} for turn in turns]
        options = {**self.template_kwargs, **options}
        try:
            text = self._apply(turns, options)
        except InputError:
            if turns[0] != {"role": "system", "content": ""}:  # a template that refuses system turns has no default to keep out
                raise
            text = self._apply(turns[1:], options)
        for turn in turns:
            content = turn["content"]
            if turn["role"] == "assistant":  # templates drop thoughts
                content = content.rpartition(CLOSED_THOUGHT.strip())[2]
            if content.strip() not in text:
                kind, what = (_NoSystemTurn, "system_prompt") if turn["role"] == "system" else (InputError, "chat template")
                raise kind(f"{what}: the chat template leaves out the {turn['role']} turn {shorten(content, 60)!r}")
        return text

    @cached_property
    def template(self) -> str:
        """The template, its calls of the clock replaced by the day that they are to give."""
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise InputError(f"tokenizer: {' '.join(str(error).split())}") from None
        today = datetime.combine(self.date or UNDATED, time())
        pinned = CLOCK.sub(lambda match: json.dumps(today.strftime(match["form"])), template)
        if "strftime_now(" in pinned:
            raise InputError(
                "tokenizer: its chat template calls strftime_now with something else than a quoted format, and cannot be pinned"
            )
        return pinned

    def _apply(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, chat_template=self.template, **options)
        except (TemplateError, ValueError, TypeError) as error:
            kind, given = InputError, ""
            if turns[0]["role"] == "system":
                kind, given = _NoSystemTurn, f"system_prompt: {turns[0]['content']!r}: "
            raise kind(f"{given}the tokenizer's chat template fails: {error}") from None

    def _transcript(self, turns: Sequence[Turn]) -> str:
        """In the Human/Assistant form; a system turn, of an axis, comes first."""
        system = turns[0]["content"] if turns[0]["role"] == "system" else self.system_prompt
        if turns[0]["role"] != "system" and system:
            raise InputError(f"system_prompt: the tokenizer has no chat template that could hold {shorten(system, 60)!r}; give null")
        start = f"{self._mask(system)}: " if turns[0]["role"] == "system" and system else ""
        return start + "".join(f"\n\n{SPEAKERS[turn['role']]}: {self._mask(turn['content'])}" for turn in turns if turn["role"] != "system")

    # --- tokens ----------------------------------------------------------------------------------------------------------

    def _read(self, turns: Sequence[Turn], text_of: Callable[[Sequence[Turn]], str]) -> list[int]:
        """The ids of a conversation's text. Templates write leading specials themselves; without one they are the tokenizer's."""
        return [*([] if self._is_templated else self._added_specials[0]), *self._ids(text_of(turns))]

    @cached_property
    def _added_specials(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text by itself."""
        bare, whole = (self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        before = next((n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), 0)
        return whole[:before], whole[before + len(bare) :]

    @cached_property
    def _control_tokens(self) -> list[Any]:
        """Special tokens, and what else the template writes in one token; thoughts are the model's own words."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        template, own = str(self.tokenizer.chat_template or ""), (THOUGHT, CLOSED_THOUGHT.strip())
        return [
            token
            for token in sorted(tokens, key=lambda token: -len(token.content))
            if len(token.content) > 1 and (token.special or (token.content in template and token.content not in own))
        ]

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token.content) for token in self._control_tokens) or r"(?!)")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token.content: number for number, token in enumerate(self._control_tokens)}

    def _mask(self, text: str) -> str:
        return self._control.sub(lambda match: chr(MASK + self._numbers[match.group()]), text)

    def _unmask(self, text: str) -> str:
        return MASKED.sub(lambda match: self._control_tokens[ord(match.group()) - MASK].content, text)

    def _ids(self, text: str) -> list[int]:
        """A text's ids; masked control tokens are read as text."""
        if not MASKED.search(text):
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids: list[int] = []
        start, strips = 0, False
        for match in [*self._control.finditer(text), None]:  # where a tokenizer cuts a text before all else
            control = self._control_tokens[self._numbers[match.group()]] if match else None
            part = text[start : match.start() if match else len(text)]
            part = part.lstrip() if strips else part
            ids += self._plain_ids(self._unmask(part.rstrip() if control and control.lstrip else part))
            if match and control:
                ids.append(self.tokenizer.convert_tokens_to_ids(match.group()))
                start, strips = match.end(), control.rstrip
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a control token; where a vocabulary has a control token for a word, it is unknown."""
        if not text:
            return []
        if self._plain is None:
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            ids = self._plain.encode(text, add_special_tokens=False).ids
        unknown = self.tokenizer.unk_token_id
        return ids if unknown is None else [unknown if token in self._control_ids else token for token in ids]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids([token.content for token in self._control_tokens]))

    @cached_property
    def _plain(self) -> Any | None:
        """The tokenizer without control tokens; None where it is not of the kind that can be taken apart."""
        from tokenizers import Tokenizer

        if not getattr(self.tokenizer, "is_fast", False):
            return None
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in self._numbers]
        return Tokenizer.from_str(json.dumps(parts))


def transcript(prompt: Prompt) -> str:
    """The conversation in the Human/Assistant form of Anthropic's HH data."""
    return "".join(f"\n\n{SPEAKERS[message.role]}: {message.content}" for message in prompt.messages)


def _turns(prompt: Prompt) -> list[Turn]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _is_thinking(text: str) -> bool:
    """Whether a generation prompt opens a thought."""
    return text.rstrip().endswith(THOUGHT)


def _fitted(encode: Callable[[Sequence[Turn]], list[int]], turns: Sequence[Turn], max_tokens: int, key: str, last: int = 1) -> Encoded:
    """A conversation in `max_tokens`: without its oldest turns, but for its `last` ones, which then lose words on their left.

    A system turn stays, and so do headers. Raises InputError where there is no room for these.
    """
    ids = encode(turns)
    if len(ids) <= max_tokens:
        return Encoded(ids)
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    rest = list(turns[len(system) :])
    for start in range(1, len(rest) - last + 1):
        if rest[start]["role"] == "user" and len(ids := encode([*system, *rest[start:]])) <= max_tokens:
            return Encoded(ids, truncated=True)
    rest = rest[-last:]
    for place, turn in enumerate(rest):
        content = turn["content"]

        def shortened(start: int) -> list[int]:
            return encode([*system, *rest[:place], {**turn, "content": content[start:]}, *rest[place + 1 :]])  # noqa: B023

        words = [match.start() for match in re.finditer(r"(?<=\s)\S", content)]
        for starts in ([*words, len(content)], range(len(content) + 1)):
            first = _first(starts, lambda start: len(shortened(start)) <= max_tokens)
            if first < len(content):
                return Encoded(shortened(first), truncated=True)
        if len(ids := shortened(len(content))) <= max_tokens:
            return Encoded(ids, truncated=True)
        rest[place] = {**turn, "content": ""}
    raise InputError(f"{key}: {max_tokens} has no room for the {len(ids)} tokens that surround every conversation")


def _first(places: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first place that fits, by bisection; the last is taken to."""
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(places[middle]) else (middle + 1, high)
    return places[high]
