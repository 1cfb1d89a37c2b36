"""Takes a model's thoughts off its answer, however its family marks them."""

import re

_THINK = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|antthinking|inner_?(?:thoughts?|monologue))"
_REASON = r"(?:reason(?:ing)?|analysis|reflection|scratch_?pad|rationale|chain_of_thought|cot)"
# <think>, [THINK], and the marks of Sky-T1, Cohere, Kimi, Gemma and MedGemma. A tag in quotes or backticks is talked about.
_OPEN = re.compile(
    rf"(?<![`'\"])(?:<{_THINK}(?:\s[^<>]*)?>|\[{_THINK}\]|<\|(?:(?:begin|start)_(?:of_)?)?{_THINK}\|>|\u25c1{_THINK}\u25b7|<\|channel>thought\b|<unused94>)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"(?<![`'\"])(?:</{_THINK}\s*>|\[/{_THINK}\]|<\|(?:/|end_(?:of_)?){_THINK}\|>|\u25c1/{_THINK}\u25b7|<channel\|>|<unused95>)",
    re.IGNORECASE,
)
_EMPTY = re.compile(rf"<{_THINK}\s*/>", re.IGNORECASE)
# Words that answers have of their own are thoughts only where the text begins with them.
_LEADING = re.compile(rf"\s*(?:(<|\[)({_REASON})(?:>|\])|(<)(details) type=\"reasoning\"[^<>]*>)", re.IGNORECASE)
_ANSWER = r"(?:answer|final_?answer|solution|response|output)"
_OPEN_ANSWER = re.compile(rf"\s*(?:<{_ANSWER}>|<\|(?:(?:begin|start)_(?:of_)?){_ANSWER}\|>)", re.IGNORECASE)
_CLOSE_ANSWER = re.compile(rf"(?:</{_ANSWER}>|<\|(?:end_(?:of_)?){_ANSWER}\|>)\s*\Z", re.IGNORECASE)
# gpt-oss: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>, or that without its specials.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:return|end|call|start)\|>")
_BARE_CHANNELS = re.compile(r"\s*analysis(?=\S).*assistantfinal", re.DOTALL)


def without_thoughts(text: str) -> str | None:
    """What an answer has beside thoughts; None where a thought never ends, for then there is no answer.

    Thoughts stand between marks such as <think> and </think>, anywhere and several times, or before a closing mark alone, whose opening
    the chat template wrote. A wrapper of the answer after them, such as <answer>, goes too. A text without thoughts is returned as it is.
    """
    if _CHANNEL.search(text):
        parts = _CHANNEL.split(text)
        finals = [body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name == "final"]
        return _CHANNEL_END.split(finals[-1])[0].strip() if finals else None
    if bare := _BARE_CHANNELS.match(text):
        return text[bare.end() :].strip()
    rest = _EMPTY.sub("", text)
    while opened := _LEADING.match(rest):
        bracket, name = opened[1] or opened[3], opened[2] or opened[4]
        closed = re.search(re.escape(f"{bracket}/{name}"), rest, re.IGNORECASE)
        if closed is None:
            return None
        rest = rest[closed.end() + 1 :]
    while opened := _OPEN.search(rest):
        closed = _CLOSE.search(rest, opened.end())
        if closed is None:
            return None
        rest = rest[: opened.start()] + rest[closed.end() :]
    if closings := [*_CLOSE.finditer(rest)]:
        rest = rest[closings[-1].end() :]
    return text if rest == text else _CLOSE_ANSWER.sub("", _OPEN_ANSWER.sub("", rest, count=1)).strip()
