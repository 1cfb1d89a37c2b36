"""A causal model's output layer on response positions only, in chunks whose logits are recomputed in the backward pass.

Logits of every position, (B, T, V), are the largest tensors of training and of KL. Here the model runs once to hidden states, and only
those that predict a response token go on. Logits are the model's own: its forward pass runs on given hidden states in place of its
layers, so that whatever it does before and after the output layer (soft-capping, scaling, a bias, adapters) is done here too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**26  # logits at a time: 512 positions at a vocabulary of 128k, 256 MiB in fp32


@dataclass(frozen=True)
class Positions:
    """Hidden states (P, H) of some positions, and what makes logits (n, V) of n of them. V is at most `vocabulary`."""

    states: Tensor
    logits: Callable[[Tensor], Tensor]
    vocabulary: int

    @property
    def chunks(self) -> tuple[Tensor, ...]:
        """The states in chunks of at most CHUNK logits, in order; at least one chunk, which may be empty."""
        return self.states.split(max(1, CHUNK // self.vocabulary))


Measure = Callable[[Tensor], Tensor]  # of logits (n, V), (n,)


def token_logps(
    model: Any, ids: Tensor, attention: Tensor, mask: Tensor, recognised: bool = True, measures: Sequence[Measure] = ()
) -> Tensor:
    """Log-probability of each token where `mask` is 1, given those before it; 0 elsewhere and at the first position. All (B, T).

    `model` may be wrapped, by peft or for several processes: all that has a gradient is computed inside its forward pass.
    `recognised`: what `is_recognised` gave for the model; otherwise all its logits are computed, and the chunks save only what follows.
    `measures`: more of the logits that predict each token; the result is then (B, T, 1 + measures), the log-probability first.
    """
    return logps_after(model, ids, attention, mask[:, 1:].nonzero(as_tuple=True), recognised, measures)


def logps_after(
    model: Any, ids: Tensor, attention: Tensor, where: tuple[Tensor, ...], recognised: bool = True, measures: Sequence[Measure] = ()
) -> Tensor:
    """As `token_logps`, of the tokens after the positions (rows, columns) `where`."""
    rows, before = where
    logps = _at(model, ids, attention, where, partial(_logps, tokens=ids[rows, before + 1], measures=measures), recognised)
    return torch.zeros((*ids.shape, *logps.shape[1:]), device=logps.device).index_put((rows, before + 1), logps)


@torch.no_grad()
def log_collision(logits: Tensor) -> Tensor:
    """Log of the sum of all tokens' squared probabilities, without gradient: (n, V) -> (n,)."""
    return (2 * logits.detach().float().log_softmax(dim=-1)).logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Of the next token, in nats, with gradient: (n, V) -> (n,)."""
    logps = logits.float().log_softmax(dim=-1)
    return -(logps.exp() * logps).sum(dim=-1)


def response_positions(model: Any, ids: Tensor, attention: Tensor, mask: Tensor, recognised: bool = True) -> Positions:
    """The positions before response tokens, row by row. The arguments are those of `token_logps`."""
    return positions_at(model, ids, attention, mask[:, 1:].nonzero(as_tuple=True), recognised)


def positions_at(model: Any, ids: Tensor, attention: Tensor, where: tuple[Tensor, ...], recognised: bool = True) -> Positions:
    """The positions (rows, columns) `where`."""
    kept: list[Positions] = []

    def keep(positions: Positions) -> Tensor:
        kept.append(positions)
        return positions.states

    _at(model, ids, attention, where, keep, recognised)
    return kept[0]


def recomputed(positions: float, vocabulary: int) -> float:
    """Of so many positions in a pass, those whose logits the backward pass computes again: all but the last chunk's."""
    chunk = max(1, CHUNK // vocabulary)
    return max(0, math.ceil(positions / chunk) - 1) * chunk


@torch.no_grad()
def is_recognised(model: Any) -> bool:
    """Whether the logits that are computed here are the model's own, on 4 tokens. On the meta device, whether they have their shape."""
    causal, training = _causal(model), model.training
    ids = torch.arange(4, device=model.device)[None] % causal.config.get_text_config().vocab_size
    model.eval()
    own = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    try:
        positions = response_positions(model, ids, torch.ones_like(ids), torch.ones(ids.shape))
        logits = positions.logits(positions.states)
    except Exception:  # whatever a model that is built otherwise raises
        return False
    finally:
        model.train(training)
    tolerance = torch.finfo(own.dtype).eps ** 0.5
    return own.shape == logits.shape and (own.is_meta or bool((own - logits).abs().max() <= tolerance * own.abs().max()))


def _logps(positions: Positions, tokens: Tensor, measures: Sequence[Measure] = ()) -> Tensor:
    """Of one token at each position, (P,); with measures, (P, 1 + measures)."""

    def logps(states: Tensor, tokens: Tensor) -> Tensor:
        logits = positions.logits(states).float()
        logps = -F.cross_entropy(logits, tokens, reduction="none")
        return torch.stack([logps, *(measure(logits) for measure in measures)], dim=-1) if measures else logps

    parts = positions.chunks
    pairs = list(zip(parts, tokens.split([len(part) for part in parts]), strict=True))
    # The backward pass begins with the last chunk: recomputing it would free nothing.
    return torch.cat([*(checkpoint(logps, *pair, use_reentrant=False) for pair in pairs[:-1]), logps(*pairs[-1])])  # pyright: ignore


def _at(
    model: Any, ids: Tensor, attention: Tensor, where: tuple[Tensor, ...], compute: Callable[[Positions], Tensor], recognised: bool
) -> Tensor:  # fmt: skip
    """`compute` of the positions (rows, columns) `where`, inside the model's forward pass.

    It is computed as soon as the layers are done, and leaves the forward pass as its `hidden_states`. What wraps the model (an autocast
    context, DDP, which looks for the weights behind an output) thereby sees it as it sees logits.
    """
    inputs = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
    if not recognised:
        logits = model(**inputs).logits[where]
        return compute(Positions(logits, lambda states: states, logits.shape[-1]))
    causal = _causal(model)

    def after_the_layers(layers: Any, _: Any, output: Any) -> Any:
        kind, states = type(output), output.last_hidden_state[where]
        result = compute(Positions(states, partial(_logits, causal, kind), causal.config.get_text_config().vocab_size))
        return kind(last_hidden_state=states[None, :1].detach(), hidden_states=(result,))  # of the model's own logits one is computed

    hook = causal.base_model.register_forward_hook(after_the_layers)
    try:
        return model(**inputs).hidden_states[0]
    finally:
        hook.remove()


def _causal(model: Any) -> Any:
    """The language model inside whatever wraps it."""
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


class _Given:
    """Stands in for a model's layers: gives an output instead of computing it."""

    def __init__(self, layers: Any, output: Any) -> None:
        self._layers, self._output = layers, output

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layers, name)


def _logits(causal: Any, kind: Any, states: Tensor) -> Tensor:
    """The model's logits (n, V) from hidden states (n, H): its class's forward pass, past what wraps it, on given states."""
    name, layers = causal.base_model_prefix, causal.base_model
    ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    causal._modules[name] = _Given(layers, kind(last_hidden_state=states[None]))
    try:
        return type(causal).forward(causal, input_ids=ids, use_cache=False).logits[0]
    finally:
        causal._modules[name] = layers
