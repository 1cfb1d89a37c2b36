"""FLOPs of what is computed, by one rule for runs and plans: 2 for each weight and row that it multiplies, and attention beside.

**Forward.** Weights of the body multiply every token; those of the output layer the positions whose logits are taken; layers on a pooled
position one row a sequence. Embeddings are looked up, which multiplies nothing. Attention multiplies each token with every token of its
sequence, once for the scores and once for the values, masked or not, in a local window or not: so the eager and sdpa kernels do.

**Training.** A product costs the same again for the gradient of what it reads, if anything below is trained, and for the gradient of its
weight, if that is trained. Adapters count as the two products that they are. The backward pass computes logits again, but for those of a
pass's last chunk; with gradient checkpointing each layer too, up to the last product that it needs.

Not counted: padding, norms, activations, DeBERTa's projections of relative positions (one a batch), and what a fused attention kernel
saves on masked pairs or recomputes in its backward pass.
"""

import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from apo_bench.config.schema import Lora, Recipe
from apo_bench.models.adapters import CLASSIFICATION_HEADS, readable
from apo_bench.models.output_layer import recomputed

EMBEDDINGS = re.compile(r"emb|project_in")  # what is below the layers
RELATIVE = re.compile(r"\.rel_embeddings\.|encoder\.LayerNorm\.")  # relative positions, which every layer of DeBERTa's reads
ATTENTION = re.compile(r"att", re.IGNORECASE)
ATTENTION_OUTPUT = re.compile(r"(o|out|dense|c_proj|wo|to_out)(_|$)", re.IGNORECASE)  # its last product; the others give q, k and v
NORM_BEFORE = re.compile(r"(input_layernorm|ln_?1|norm_?1|(self_)?att\w*norm|layernorm_before|pre_\w*norm\w*)$")
NORM = re.compile(r"(norm|ln_?\d?)$", re.IGNORECASE)
QK_NORM = re.compile(r"\.(q|k)_\w*norm\.")
NORM_AFTER = re.compile(r"output[._]|post_(feedforward|mlp|ff)")


@dataclass(frozen=True)
class Rates:
    """FLOPs for each token of the body, each pair of tokens of a sequence, each position with logits, each sequence."""

    token: float
    pair: float
    output: float
    sequence: float

    def total(self, lengths: Sequence[int], outputs: Sequence[int]) -> float:
        squares = sum(map(operator.mul, lengths, lengths))
        return self.token * sum(lengths) + self.pair * squares + self.sequence * len(lengths) + self.output * sum(outputs)


@dataclass(frozen=True)
class Size:
    """A forward pass. windows: how many tokens each layer keeps in generation; None: all of them."""

    rates: Rates
    windows: tuple[int | None, ...]

    def forward(self, lengths: Sequence[int], outputs: Sequence[int] | None = None) -> float:
        """One pass over sequences of these lengths, with logits at so many positions of each; None: at all of them."""
        return self.rates.total(lengths, lengths if outputs is None else outputs)

    def generation(self, prompt: int, responses: Sequence[int], outputs: int | None = 1) -> float:
        """Responses of so many tokens to one prompt, which is read once for all of them; each is then fed token by token but for its last.

        outputs: positions of the prompt whose logits are taken; None: all of them.
        """
        spent = self.forward([prompt], None if outputs is None else [outputs])
        layers = Counter(self.windows)
        for response in responses:
            seen = sum(count * _attended(prompt, response, window) for window, count in layers.items()) / len(self.windows)
            spent += (response - 1) * (self.rates.token + self.rates.output) + self.rates.pair * seen
        return spent


@dataclass(frozen=True)
class Training:
    """A fit by a recipe. size: the model's before it; step: forward and backward, logits computed once; vocabulary: of its logits."""

    size: Size
    step: Rates
    vocabulary: int = 1

    def flops(self, tokens: float, lengths: Sequence[int], outputs: Sequence[int] | None = None, sequences: int = 1) -> float:
        """A fit that read so many tokens of sequences with these lengths, each as often as the others, so many sequences a pass.

        outputs: positions of each whose logits are taken, in chunks that the backward pass computes again; None: the model's own logits,
        at all positions and kept.
        """
        once = self.step.total(lengths, lengths if outputs is None else outputs)
        if outputs:
            passes = len(outputs) / sequences
            once += self.size.rates.output * passes * recomputed(sum(outputs) / passes, self.vocabulary)
        return once * tokens / max(1, sum(lengths))


def _attended(prompt: int, response: int, window: int | None) -> float:
    """Tokens that the steps of a response attend to, each step's own with them, where a layer keeps a window of them."""
    last = prompt + response - 1
    seen = (response - 1) * (prompt + 1 + last) / 2
    beyond = 0 if window is None else max(0, last - max(prompt, window))  # steps that do not see all
    return seen - beyond * (last - (beyond - 1) / 2 - (window or 0))


def size(model: Any) -> Size:
    """Of a model with a language-model or a classification head, with the adapters that it has; on any device, meta as well."""
    model = readable(model)
    body = _body(model)
    return Size(_rates(body, _Trained(frozenset()), checkpointing=False), windows(model.config.get_text_config(), len(body.layers)))


def training(model: Any, recipe: Recipe, *, checkpointing: bool | None = None) -> Training:
    """Of a fit by the recipe; adapters that the model already has are those of the recipe.

    checkpointing: layers are computed again in the backward pass; None: as the recipe has it.
    """
    if checkpointing is None:
        checkpointing = getattr(recipe, "gradient_checkpointing", False) is True
    names = [name for name, _ in _named_weights(readable(model), without_adapters=True)]
    if recipe.lora:
        names = [name for name in names if name.partition(".")[0] in CLASSIFICATION_HEADS]
    elif recipe.freeze:
        names = [name for name in names if not re.search(recipe.freeze, name)]
    trained = _Trained(frozenset(names), recipe.lora)
    body = _body(readable(model), without_adapters=True)
    config = model.config.get_text_config()
    bare = Size(_rates(body, _Trained(frozenset()), checkpointing=False), windows(config, len(body.layers)))
    return Training(bare, _rates(body, trained, checkpointing), config.vocab_size)


# --- what multiplies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """A weight by its name, and the share of its entries that multiplies a row: 1, or of experts those that a token is sent to."""

    name: str
    rows: int
    columns: int
    used: float = 1.0

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def leaf(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def flops(self) -> float:
        return 2.0 * self.used * self.rows * self.columns


@dataclass(frozen=True)
class _Layer:
    """One layer: the products that give q, k and v, attention's output, the MLP's, in that order; `others`: names of its other weights.

    pair: FLOPs of one of attention's two products for a pair of tokens. positions: FLOPs of relative positions' products a token.
    parallel: attention and the MLP read the same. ends_in_product: nothing after the MLP's last product has to be kept for its gradient.
    """

    inputs: tuple[_Matrix, ...]
    output: tuple[_Matrix, ...]
    mlp: tuple[_Matrix, ...]
    norms_before: tuple[str, ...]
    norms_after: tuple[str, ...]
    others: tuple[str, ...]
    pair: float
    positions: float
    parallel: bool
    ends_in_product: bool

    @property
    def matrices(self) -> tuple[_Matrix, ...]:
        return self.inputs + self.output + self.mlp


@dataclass(frozen=True)
class _Body:
    """embeddings: names of weights below the layers. before, after: products of every token below and above them; pooled: of a sequence."""

    embeddings: tuple[str, ...]
    before: tuple[_Matrix, ...]
    layers: tuple[_Layer, ...]
    after: tuple[_Matrix, ...]
    pooled: tuple[_Matrix, ...]
    output: tuple[_Matrix, ...]
    norms: tuple[str, ...]


def _named_weights(module: Any, without_adapters: bool) -> Iterable[tuple[str, Any]]:
    """Parameters by the names that they have without adapters; those of adapters, if wanted, by their own."""
    for name, weight in module.named_parameters():
        if ".original_module." not in name and not (without_adapters and ".lora_" in name):
            yield re.sub(r"\.(base_layer|modules_to_save\.default)(?=\.)", "", name), weight


def _body(model: Any, without_adapters: bool = False) -> _Body:
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    relative = tuple(name for name, _ in _named_weights(model, without_adapters) if _relative_positions(config) and RELATIVE.search(name))
    stack = _stack(model, config.num_hidden_layers)
    inside = {id(weight) for _, layer in stack for weight in layer.parameters()} - looked_up
    parts: dict[str, list[Any]] = {"embeddings": [], "before": [], "after": [], "pooled": [], "output": [], "norms": []}
    for name, weight in _named_weights(model, without_adapters):
        if name in relative:
            continue
        below = EMBEDDINGS.search(name)
        if output is not None and weight is output.weight:
            parts["output"].append(_matrix(name, weight, config))
        if id(weight) in looked_up or (below and weight.dim() == 1 and id(weight) not in inside):
            parts["embeddings"].append(name)
        elif id(weight) not in inside and weight.dim() == 1:
            parts["norms"].append(name)
        elif id(weight) not in inside and (output is None or weight is not output.weight):
            pooled = output is None and name.partition(".")[0] != "score"
            parts["before" if below else "pooled" if pooled else "after"].append(_matrix(name, weight, config))
    each = config.num_hidden_layers / len(stack)
    layers = tuple(_layer(name, layer, config, looked_up, relative, each, without_adapters) for name, layer in stack)
    return _Body(layers=layers, **{part: tuple(entries) for part, entries in parts.items()})


def _stack(model: Any, layers: int) -> list[tuple[str, Any]]:
    """The layers with their names; the whole base model as one where there is no list of so many."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers and any(weight.dim() > 1 for weight in module.parameters()):
            return [(f"{name}.{number}", layer) for number, layer in enumerate(module)]
    return [(model.base_model_prefix, model.base_model)]


def _layer(
    name: str, layer: Any, config: Any, looked_up: set[int], relative: tuple[str, ...], layers: float, without_adapters: bool
) -> _Layer:  # fmt: skip
    """relative: names of what it reads beside its input. layers: how many it stands for."""
    weights = dict(_named_weights(layer, without_adapters))
    matrices = [_matrix(f"{name}.{own}", weight, config) for own, weight in weights.items() if _multiplies(own, weight, looked_up)]
    attention = [matrix for matrix in matrices if ATTENTION.search(matrix.name.removeprefix(name))]
    inputs = [matrix for matrix in attention if not ATTENTION_OUTPUT.match(matrix.leaf)]
    owned = tuple(part for matrix in matrices for part in (matrix.name, f"{matrix.module}.bias"))
    norms = [own for own, _ in layer.named_modules() if NORM.search(own) and not QK_NORM.search(f".{own}.")]
    before = [own for own in norms if NORM_BEFORE.match(own.rpartition(".")[2])]
    after = [own for own in norms if NORM_AFTER.match(own)]
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return _Layer(
        inputs=tuple(inputs),
        output=tuple(matrix for matrix in attention if matrix not in inputs),
        mlp=tuple(matrix for matrix in matrices if matrix not in attention),
        norms_before=_weights(name, before),
        norms_after=_weights(name, after),
        others=relative + tuple(other for own in weights if (other := f"{name}.{own}") not in owned),
        pair=2.0 * width * layers if attention else 0.0,
        positions=2.0 * width * layers * _relative_positions(config),
        parallel=getattr(config, "use_parallel_residual", getattr(config, "parallel_attn", len(norms) == 1)),
        ends_in_product=not (after or not before or _drops(layer) or any(matrix.used < 1 for matrix in matrices)),
    )


def _weights(layer: str, modules: list[str]) -> tuple[str, ...]:
    return tuple(f"{layer}.{module}.{part}" for module in modules for part in ("weight", "bias"))


def _drops(layer: Any) -> bool:
    """Dropout is at work outside attention."""
    modules = [module for name, module in layer.named_modules() if not ATTENTION.search(name)]
    rates = [module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0) for module in modules]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _multiplies(name: str, weight: Any, looked_up: set[int]) -> bool:
    """Relative positions are projected once a batch, however many tokens it has: not counted."""
    return weight.dim() > 1 and id(weight) not in looked_up and ".pos_" not in name


def _matrix(name: str, weight: Any, config: Any) -> _Matrix:
    rows, columns = weight.shape[:-1].numel(), weight.shape[-1]
    experts = weight.shape[0] if weight.dim() == 3 else None
    return _Matrix(name, rows, columns, getattr(config, "num_experts_per_tok", experts) / experts if experts else 1.0)


def _relative_positions(config: Any) -> int:
    """Rows of relative positions that DeBERTa's (v2, v3) queries and keys are multiplied with, both together."""
    if config.model_type != "deberta-v2" or not config.relative_attention:
        return 0
    span = config.position_buckets if config.position_buckets > 0 else config.max_relative_positions
    return 2 * (span if span > 0 else config.max_position_embeddings) * len({"c2p", "p2c"} & set(config.pos_att_type))


def windows(config: Any, layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


# --- what gradients multiply --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trained:
    """Names of the weights that get gradients, and adapters beside others."""

    names: frozenset[str]
    lora: Lora | None = None

    def weight(self, name: str) -> bool:
        return name in self.names

    def rank(self, matrix: _Matrix, output: bool = False) -> int:
        """The rank of its adapters: of those named, or of all but the output layer's and a head's; 0: none."""
        if self.lora is None or matrix.name.partition(".")[0] in CLASSIFICATION_HEADS:
            return 0
        targets = self.lora.target_modules
        return self.lora.rank if (not output if targets == "all-linear" else matrix.leaf in targets) else 0

    def moves(self, matrix: _Matrix) -> bool:
        """What it gives depends on what is trained, even if what it reads does not."""
        return self.weight(matrix.name) or self.weight(f"{matrix.module}.bias") or self.rank(matrix) > 0

    def product(self, matrix: _Matrix, reads: bool, output: bool = False) -> float:
        """Forward and backward of a row. reads: what it reads depends on what is trained."""
        rank = self.rank(matrix, output)
        adapters = 2.0 * rank * (matrix.columns * (2 + reads) + matrix.rows * 3)
        return matrix.flops * (1 + reads + self.weight(matrix.name)) + adapters

    def again(self, matrix: _Matrix) -> float:
        """Forward alone."""
        return matrix.flops + 2.0 * self.rank(matrix) * (matrix.columns + matrix.rows)


def _rates(body: _Body, trained: _Trained, checkpointing: bool) -> Rates:
    """From the embeddings up: whether a layer's input depends on what is trained decides which gradients pass it.

    With checkpointing transformers has the embeddings' output require a gradient, whatever is trained.
    """
    flows = checkpointing or any(map(trained.weight, body.embeddings))
    token = pair = sequence = 0.0
    for matrix in body.before:
        token += trained.product(matrix, flows)
        flows |= trained.moves(matrix)
    for layer in body.layers:
        of_token, of_pair, flows = _layer_rates(layer, trained, flows, checkpointing)
        token, pair = token + of_token, pair + of_pair
    flows |= any(map(trained.weight, body.norms))
    for matrix in body.after:
        token += trained.product(matrix, flows)
        flows |= trained.moves(matrix)
    for matrix in body.pooled:
        sequence += trained.product(matrix, flows)
        flows |= trained.moves(matrix)
    return Rates(token, pair, sum(trained.product(matrix, flows, output=True) for matrix in body.output), sequence)


def _layer_rates(layer: _Layer, trained: _Trained, below: bool, checkpointing: bool) -> tuple[float, float, bool]:
    """FLOPs a token and a pair of tokens, and whether what the layer gives depends on what is trained."""
    after = any(name in layer.norms_after and trained.weight(name) for name in layer.others)
    others = [name for name in layer.others if trained.weight(name) and name not in layer.norms_after]
    reads = below or not set(others).isdisjoint(layer.norms_before)
    moved = {role for matrix in layer.inputs if reads or trained.moves(matrix) for role in _roles(matrix)}
    moved |= {norm[1] for norm in map(QK_NORM.search, others) if norm}
    scored = bool(moved & {"q", "k"}) or any(map(RELATIVE.search, others))
    attended = below or scored or bool(others or moved) or any(map(trained.moves, layer.output))
    middle = below or bool(others) if layer.parallel else attended
    last = middle or any(map(trained.moves, layer.mlp[:-1]))
    token = sum(trained.product(matrix, reads) for matrix in layer.inputs)
    token += sum(trained.product(matrix, scored or bool(moved)) for matrix in layer.output)
    token += sum(trained.product(matrix, middle) for matrix in layer.mlp[:-1])
    token += sum(trained.product(matrix, last) for matrix in layer.mlp[-1:])
    token += layer.positions * (3 if scored else 1)
    pair = layer.pair * (2 + len(moved) + scored)  # scores and values; then gradients of q, k, v and of the scores
    if checkpointing:
        token += sum(map(trained.again, layer.matrices)) + layer.positions
        pair += 2 * layer.pair
        if layer.ends_in_product and layer.mlp and not trained.rank(layer.mlp[-1]):
            token -= trained.again(layer.mlp[-1])
    return token, pair, attended or last or after or any(map(trained.moves, layer.mlp[-1:]))


def _roles(matrix: _Matrix) -> str:
    """Which of q, k and v a product gives."""
    alone = re.match(r"(q|k|v)(_|uery|ey|alue|$)", matrix.leaf)
    return alone[1] if alone and "key_value" not in matrix.leaf else "qkv"
