"""What a chat server sent, read: an answer without the model's thoughts, or why there is none."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apo_bench.clients.thoughts import without_thoughts

REFUSED = "refused"  # the judge's model, or a filter before it, would not answer
CUT_OFF = "cut off"
UNFINISHED_THOUGHT = "unfinished thought"
NO_TEXT = "no text in the reply"
TRY_AGAIN = {408, 409, 425, 429}  # and all from 500
OVERLOADED = {429, 503, 529}
HOPELESS = {401, 402, 403, 404, 405, 407}  # as would every other call
SHOWN = 200  # characters of a server's error message
REASONS = 5  # of failures in a line
MAX_TOKENS = 2**53  # a larger count is none
INT_DIGITS = 400  # Python refuses to read many more

_CONTENT = re.compile(
    r"content[ _-]?(?:filter|policy|management|moderation|violation)|moderat|flagged|responsible_?ai|safety|prohibited|inappropriate"
    r"|harmful|sensitive|violat|usage polic",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(r"api[ _-]?key|credit balance|billing|quota|account (?:has been|was|is)\b", re.IGNORECASE)
_FAILED_FINISHES = {"error", "abort", "aborted", "cancelled", "canceled", "failed", "network_error", "insufficient_system_resource"}
_REFUSED_FINISHES = {
    "content_filter",
    "content_filtered",
    "sensitive",
    "safety",
    "refusal",
    "prohibited_content",
    "blocklist",
    "guardrail_intervened",
}
_CUT_FINISHES = {"length", "max_tokens", "model_length"}
_REQUEST_ID = re.compile(r"\b(?:req|gen|chatcmpl)[-_]\w+|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b(?=\w*\d)(?=\w*[a-z])\w{20,}\b")


@dataclass(frozen=True)
class Reply:
    """The result of a call. `text` is the whole answer, without thoughts, where `failure` is ""; otherwise `failure` is the reason why
    there is none.

    `answered` tells failures apart: there is an answer (the model's refusal, one cut off), or nobody answered, and a later run may ask
    again. `rejected`: the server would not take this very request, `text` are its words; whether the request or the set-up is at fault is
    known once any other request has been answered. Tokens are the server's count, None where it gave none. `lost_usd` is the most that
    attempts whose answer was lost on the way may have cost. `logprobs`: each token of the answer, with the log-probabilities of what might
    stand in its place, itself among them; where they were asked for and the server gave them.
    """

    text: str = ""
    failure: str = ""
    answered: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float = 0.0
    lost_usd: float = 0.0
    latency_s: float = math.nan
    rejected: bool = False
    logprobs: tuple[tuple[str, Mapping[str, float]], ...] = ()


@dataclass(eq=False)
class CallError(Exception):
    """An attempt without a reply. `words` are the server's. `again`: another may do better. `rejected`: the server will not take this
    very request. `hopeless`: nor any other. `lost`: it may have been paid for all the same. `wait_s`: what the server asked for.
    """

    reason: str
    words: str = ""
    again: bool = True
    rejected: bool = False
    hopeless: bool = False
    lost: bool = False
    overloaded: bool = False
    wait_s: float | None = None


def with_words(reason: str, words: str) -> str:
    return f"{reason}: {words}" if words else reason


def counted_reasons(counts: Mapping[str, int]) -> str:
    """Why there is no answer, the most frequent reasons first; of many, those alone."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[REASONS:])
    return ", ".join([*(f"{count} {reason}" for reason, count in ordered[:REASONS]), *([f"{others} for other reasons"] if others else [])])


def read_reply(content: bytes) -> Reply:
    """The reply in a response's body, without its cost. Raises CallError where it is an error, and ValueError where it is no JSON."""
    data = read_json(content)
    error, choices = (data.get("error"), data.get("choices")) if isinstance(data, Mapping) else (data, None)
    if error:
        raise error_of(None, error)
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        raise CallError("no choices in the reply", words_of(data) if isinstance(data, Mapping) and not choices else "", lost=True)
    finish = choice["finish_reason"].casefold() if isinstance(choice.get("finish_reason"), str) else ""
    if choice.get("error") or finish in _FAILED_FINISHES:
        raised = error_of(None, choice.get("error") or {"message": f"finish_reason: {finish}"})
        raised.lost = True
        raise raised
    message = choice["message"] if isinstance(choice.get("message"), Mapping) else {"content": False}  # no message: no text
    text, refusal = _text(message.get("content")), _text(message.get("refusal")) or _text(message.get("content"), "refusal")
    answer = without_thoughts(text or "")
    if refusal or finish in _REFUSED_FINISHES:
        failure = REFUSED
    elif finish in _CUT_FINISHES:
        failure = CUT_OFF
    else:
        failure = NO_TEXT if text is None else UNFINISHED_THOUGHT if answer is None else ""
    prompt, completion = _tokens(data.get("usage"))
    spoken = (text if answer is None else answer) or refusal or ""
    return Reply(spoken, failure, prompt_tokens=prompt, completion_tokens=completion, logprobs=_logprobs(choice.get("logprobs")))


def read_json(content: bytes) -> Any:
    """The value of a JSON text; a whole number of any length is one. Raises ValueError."""
    try:
        return json.loads(content, parse_int=lambda digits: int(digits) if len(digits) <= INT_DIGITS else float(digits))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None


def error_of(status: int | None, body: Any, wait_s: float | None = None) -> CallError:
    """The error that a server reports, by an HTTP status or (None) inside a reply; `body` is what it says of it."""
    code = str(body.get("code") or body.get("type") or "") if isinstance(body, Mapping) else ""
    reason, words = f"HTTP {status}", words_of(body)
    if status is None:
        status = int(code) if re.fullmatch("[345][0-9][0-9]", code) else 400 if _CONTENT.search(code) else 500
        reason = f"error {code}" if code else "error"
    about = f"{code} {words}"
    if code == "insufficient_quota" or (400 <= status < 404 and _ACCOUNT.search(about)):
        return CallError(reason, words, again=False, hopeless=True)
    if status in (400, 403, 422, 451) and _CONTENT.search(about):
        return CallError(REFUSED, words, again=False, rejected=True)
    if status in TRY_AGAIN or status >= 500:
        return CallError(reason, words, overloaded=status in OVERLOADED, wait_s=wait_s)
    hopeless = status in HOPELESS or status < 400
    return CallError(reason, words, again=False, hopeless=hopeless, rejected=not hopeless)


def words_of(body: Any) -> str:
    """The message in an error's body, in whatever form, on one line and shortened, without what differs from request to request."""
    raw = ""
    while isinstance(body, Mapping) and body:
        metadata = body.get("metadata")
        if isinstance(metadata, Mapping) and isinstance(metadata.get("raw"), str):
            raw = f" ({metadata['raw']})"  # OpenRouter's: what the provider behind it answered
        inner = next((body[key] for key in ("message", "error", "detail", "msg", "errors", "code") if body.get(key)), None)
        body = json.dumps(body) if inner is None else inner
    text = body if isinstance(body, str) else json.dumps(body) if body else ""
    return " ".join(_REQUEST_ID.sub("...", f"{text}{raw}").split())[:SHOWN]


def _logprobs(given: Any) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """Tokens with their alternatives; nothing where one of them is not in the protocol's form."""
    content = given.get("content") if isinstance(given, Mapping) else None
    try:
        return tuple((each["token"], _alternatives(each)) for each in content or ())
    except (TypeError, KeyError, ValueError, OverflowError):
        return ()


def _alternatives(place: Mapping[str, Any]) -> Mapping[str, float]:
    alternatives = {each["token"]: float(each["logprob"]) for each in (*(place.get("top_logprobs") or ()), place)}
    if any(math.isnan(value) or value > 0.01 for value in alternatives.values()):
        raise ValueError("no log-probability")
    return alternatives


def _text(content: Any, kind: str = "text") -> str | None:
    """The text of a message's content: a string, or the parts of a kind, joined; None where it is something else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content if kind == "text" else ""
    parts = content if isinstance(content, list) else [content]
    if not all(part is None or isinstance(part, str | Mapping) for part in parts):
        return None
    return "".join(_part(part, kind) for part in parts)


def _part(part: Any, kind: str) -> str:
    """The text of a part of this kind; thoughts, tool calls, pictures and what is yet unknown have none."""
    if isinstance(part, str):
        return part if kind == "text" else ""
    if not isinstance(part, Mapping) or part.get("type", "text") not in (kind, f"output_{kind}"):
        return ""
    value = part.get(kind)
    value = value.get("value") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else ""


def _tokens(usage: Any) -> tuple[int, int] | tuple[None, None]:
    """Prompt and completion tokens, where a reply tells both."""
    if isinstance(usage, Mapping):
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(prompt) is int and type(completion) is int and min(prompt, completion) >= 0 and max(prompt, completion) <= MAX_TOKENS:
            return prompt, completion
    return None, None
