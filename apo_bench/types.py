"""Frozen records that flow from room to room. Standard library only."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant"]
Split = Literal["rm", "policy", "gold", "dev", "test"]
SPLITS: tuple[Split, ...] = ("rm", "policy", "gold", "dev", "test")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a policy is asked: a conversation that ends with the user's turn.

    `cluster_id` names the unit that is split, counted and resampled; prompts of one cluster are not independent.
    """

    id: str
    messages: tuple[Message, ...]
    axis: str
    cluster_id: str


@dataclass(frozen=True)
class Response:
    """A policy's answer. `tokens` counts generated tokens, the end-of-sequence token included.

    `token_ids` are the sampled ids, which training and KL read in place of the text: with the end-of-sequence token if it was sampled,
    without it after a cut at the length limit (finish "length"). After a next human turn (finish "turn") they are those before it and
    an end-of-sequence token. None: known as a text only.
    """

    prompt: Prompt
    text: str
    tokens: int
    finish: Literal["eos", "turn", "length"]
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Golden:
    """A golden response to a prompt: what the adversarial reward model holds up against the policy's samples."""

    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Pair:
    """A preference pair. `source` says whose preference it is; the APO loss weighs by it."""

    prompt: Prompt
    chosen: str
    rejected: str
    source: Literal["human", "golden_over_sample", "best_over_worst"] = "human"

    @property
    def id(self) -> str:
        """Content identity: two equal pairs are one annotation."""
        if "_id" not in self.__dict__:  # no cached_property, whose lock takes as long as the hash
            self.__dict__["_id"] = identity(self.prompt.id, self.chosen, self.rejected)
        return self.__dict__["_id"]


@dataclass(frozen=True)
class Group:
    """k responses to one prompt with the reward model's scores, in sampling order."""

    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class UnpairedExample:
    """A response that is desirable or not, without another to compare it with.

    `mismatched`: a response to another prompt, on which losses estimate how far the policy is from its reference (`lab.with_mismatched`).
    """

    prompt: Prompt
    response: str
    desirable: bool
    mismatched: str | None = None


CutTexts = Mapping[str, frozenset[str]]  # of samples that were cut at a length limit, by prompt id
NOTHING_CUT: CutTexts = {}


def cut_texts(responses: Iterable[Response]) -> CutTexts:
    """Those of the responses that were cut at a length limit."""
    cut: dict[str, set[str]] = {}
    for response in responses:
        if response.finish == "length":
            cut.setdefault(response.prompt.id, set()).add(response.text)
    return {prompt: frozenset(texts) for prompt, texts in cut.items()}


def is_cut(cut: CutTexts, prompt: Prompt, text: str) -> bool:
    return text in cut.get(prompt.id, ())


TrainingItem = Demonstration | Pair | UnpairedExample | Group


@dataclass(frozen=True)
class Policy:
    """A handle to a policy in the run's store; methods hand it on and never open it."""

    key: str


@dataclass(frozen=True)
class RewardModel:
    """A handle to a reward model in the run's store."""

    key: str


@dataclass(frozen=True)
class EnsembleRewardModel(RewardModel):
    """Reward models that score as one. It has no weights of its own."""

    members: tuple[RewardModel, ...]


@dataclass(frozen=True)
class BestOfNPolicy(Policy):
    """A policy that samples n answers from another and gives the one a reward model scores highest. It has no weights of its own."""

    policy: Policy
    reward_model: RewardModel
    n: int


@dataclass(frozen=True)
class FinishedPolicy(Policy):
    """A policy that was trained elsewhere. Its weights stay at `path`: a whole model's, or adapters on the policy `base`.

    `settings`: how it reads and writes, a PolicyModel; the key holds them.
    """

    path: str
    base: "FinishedPolicy | None" = None
    settings: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ResponseFile(Policy):
    """Responses out of a file, in place of a policy: `responses` by the prompt's id, each with its tokens. It has no weights."""

    path: str
    responses: Mapping[str, tuple[str, int]] = field(default_factory=dict, compare=False, repr=False)


SPECIAL_WORDS = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")  # of the tokenizer over a task's vocabulary


@dataclass(frozen=True)
class TrainingData:
    """What methods may see of a task: the rm split's pairs, the rm and policy splits' prompts, golden responses."""

    pairs: tuple[Pair, ...]
    prompts: Mapping[Literal["rm", "policy"], tuple[Prompt, ...]]
    golden: tuple[Golden, ...]
    axes: tuple[str, ...]
    vocabulary: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Round:
    """A finished round: the policy that came out of it and the reward model it was trained to please."""

    policy: Policy
    reward_model: RewardModel | None


def identity(*parts: str) -> str:
    """A short content hash of strings, stable over processes and machines."""
    content: list[bytes] = []
    for part in parts:
        encoded = part.encode()
        content += len(encoded).to_bytes(8, "big"), encoded
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]


def prompt_id(axis: str, messages: tuple[Message, ...]) -> str:
    """The id every task gives a prompt: its axis and its conversation."""
    return identity(axis, *(f"{message.role}\n{message.content}" for message in messages))
