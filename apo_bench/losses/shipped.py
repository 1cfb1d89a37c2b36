"""The shipped losses and online algorithms by name, as `loss: simpo`, `loss: {name: simpo, beta: 2.5}` or `algorithm: grpo` gives them.

Names are TRL's where TRL has the loss, but for the anchored ones, which it calls apo_*.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, WrapValidator

from apo_bench.errors import InputError, did_you_mean, what_is_wrong
from apo_bench.losses.likelihood import SFTLoss
from apo_bench.losses.policy_gradient import ALGORITHMS
from apo_bench.losses.policy_loss import PolicyLoss
from apo_bench.losses.preference import (
    AnchoredDownLoss,
    AnchoredZeroLoss,
    AOTLoss,
    AOTUnpairedLoss,
    BCOPairLoss,
    CDPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPositiveLoss,
    EXOLoss,
    FDPOLoss,
    HingeLoss,
    IPOLoss,
    LengthNormalisedDPOLoss,
    NCALoss,
    RDPOLoss,
    RobustLoss,
    SPPOLoss,
    WPOLoss,
)
from apo_bench.losses.ranking import RRHFLoss
from apo_bench.losses.reference_free import CPOLoss, ORPOLoss, SimPOLoss
from apo_bench.losses.unpaired import AnchoredZeroUnpairedLoss, BCOLoss, KTOLoss

SHIPPED: Mapping[str, type[PolicyLoss]] = {
    "sigmoid": DPOLoss, "hinge": HingeLoss, "ipo": IPOLoss, "cdpo": CDPOLoss, "robust": RobustLoss, "exo_pair": EXOLoss,
    "nca_pair": NCALoss, "bco_pair": BCOPairLoss, "sppo_hard": SPPOLoss, "aot": AOTLoss, "aot_unpaired": AOTUnpairedLoss,
    "discopop": DiscoPOPLoss, "dpop": DPOPositiveLoss, "sigmoid_norm": LengthNormalisedDPOLoss, "r_dpo": RDPOLoss, "f_dpo": FDPOLoss,
    "anchored_zero": AnchoredZeroLoss, "anchored_down": AnchoredDownLoss, "wpo": WPOLoss, "simpo": SimPOLoss, "orpo": ORPOLoss,
    "cpo": CPOLoss, "kto": KTOLoss, "bco": BCOLoss, "anchored_zero_unpaired": AnchoredZeroUnpairedLoss, "rrhf": RRHFLoss, "sft": SFTLoss,
}  # fmt: skip
ONLINE: Mapping[str, type] = {**ALGORITHMS, **{name: loss for name, loss in SHIPPED.items() if loss.reads == "pairs"}}


def shipped_loss(choice: str | Mapping[str, Any]) -> PolicyLoss:
    """A shipped loss by its name, or by a mapping with `name` and parameters, which may hold another loss.

    Raises InputError for a name, a parameter or a value that is not there.
    """
    return _built(choice, SHIPPED, "loss")


def shipped_algorithm(choice: str | Mapping[str, Any]) -> Any:
    """A shipped online algorithm, or loss of pairs, by its name or by a mapping with `name` and parameters; errors as of `shipped_loss`."""
    return _built(choice, ONLINE, "online algorithm or loss of pairs")


def _built(choice: str | Mapping[str, Any], registry: Mapping[str, type], what: str) -> Any:
    parameters = {"name": choice} if isinstance(choice, str) else dict(choice)
    name: Any = parameters.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise InputError(f"no shipped {what} is called {name!r}; there are: {', '.join(registry)}{did_you_mean(name, registry)}")
    cls = registry[name]
    hints = get_type_hints(cls, include_extras=True)
    known = [field.name for field in fields(cls)]  # pyright: ignore
    for key in parameters:
        if key not in known:
            raise InputError(f"unknown parameter {key!r} of {name}; it has: {', '.join(known) or 'none'}{did_you_mean(key, known)}")
    return cls(**{key: _checked(f"{name}.{key}", hints[key], value) for key, value in parameters.items()})


def _checked(where: str, hint: Any, value: Any) -> Any:
    """A parameter's value, as strictly as an experiment file's own."""
    if hint is PolicyLoss and isinstance(value, str | Mapping):
        return shipped_loss(value)
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {what_is_wrong(error.errors()[0])}") from None


def _by_name(shipped: Callable[[Any], Any], *reads: str) -> WrapValidator:
    """For a method's field: a name or a mapping becomes what is shipped and reads such data; any other value is checked as it is."""

    def checked(value: Any, check: Callable[[Any], Any]) -> Any:
        loss = shipped(value) if isinstance(value, str | Mapping) else check(value)
        if isinstance(value, str | Mapping) and loss.reads not in reads:
            raise InputError(f"{type(loss).__name__} reads {loss.reads}, and this method trains on {' or '.join(reads)}")
        return loss

    return WrapValidator(checked)


PairLoss = Annotated[PolicyLoss, _by_name(shipped_loss, "pairs")]  # field types for methods
UnpairedLoss = Annotated[PolicyLoss, _by_name(shipped_loss, "unpaired")]
OnlineLoss = Annotated[PolicyLoss, _by_name(shipped_algorithm, "rollouts", "pairs")]  # or an OnlineAlgorithm, which has all that it has
