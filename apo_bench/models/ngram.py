"""Linear n-gram reward model: Bradley-Terry on tf-idf differences, one weight vector per axis.

A cheap floor for every neural reward model, and a gold of another kind. It reads the response alone: in a pair both sides
answer one prompt, so prompt features would cancel.

    P(chosen > rejected) = sigmoid(w . (phi(chosen) - phi(rejected)))

This is logistic regression without intercept on the differences; a difference with label 1 is the same observation as its
negative with label 0.
phi: tf-idf with tf = 1 + log(count), unit length, of word n-grams (punctuation marks count as words, lower-cased), fitted on
both sides of the training pairs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from apo_bench.config.schema import NgramReward
from apo_bench.errors import InputError
from apo_bench.losses import RewardLoss
from apo_bench.types import Pair, Prompt

SHARED = "all"  # the one weight vector's name where the axes share it
_TOKEN = r"(?u)\b\w+\b|[^\w\s]"
_FORMAT = 1


@dataclass(frozen=True)
class _Weights:
    """n-grams (f), their inverse document frequencies (f,) and Bradley-Terry weights (f,), float64."""

    terms: tuple[str, ...]
    idf: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True)
class NgramRewardModel:
    """A fitted model: weights by axis (or one set named "all")."""

    spec: NgramReward
    weights: dict[str, _Weights]

    @classmethod
    def fit(cls, pairs: Sequence[Pair], weights: Sequence[float] | None, spec: NgramReward, seed: int | None) -> Self:
        """Fit on preference pairs, each counting `weights[i]` (1 if None) in the log-likelihood.

        The fit itself has no randomness, so `seed` varies the data: it draws, for each axis, a bootstrap resample of clusters (all
        pairs of a drawn cluster, as often as it is drawn). `seed=None` uses every pair once. Vocabulary and idf come from all
        pairs either way. Raises InputError for no pairs, weights that are not finite and non-negative, or an axis left without n-grams.
        """
        factors = np.ones(len(pairs)) if weights is None else np.asarray(weights, dtype=float)
        if factors.shape != (len(pairs),):
            raise ValueError(f"{len(factors)} weights for {len(pairs)} pairs")
        if not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise InputError("models.reward (ngram): pair weights must be finite and not negative")
        if not pairs:
            raise InputError("models.reward (ngram): no preference pairs to fit on")
        generator = np.random.default_rng(seed)
        names = np.array([pair.prompt.axis if spec.per_axis else SHARED for pair in pairs])
        fitted = {}
        for name in sorted(set(names.tolist())):
            chosen = np.flatnonzero(names == name)
            mine = [pairs[int(i)] for i in chosen]
            counts = _resample([pair.prompt.cluster_id for pair in mine], generator) if seed is not None else np.ones(len(mine))
            fitted[name] = _fit(mine, factors[chosen] * counts, spec, name)
        return cls(spec, fitted)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes the model can score; ("all",) where it takes any."""
        return tuple(self.weights)

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        """One score per (prompt, response), independent of the others. Raises InputError for an axis the model was not fitted on."""
        scores = np.zeros(len(items))
        names = [prompt.axis if self.spec.per_axis else SHARED for prompt, _ in items]
        for name in dict.fromkeys(names):
            if name not in self.weights:
                raise InputError(f"n-gram reward model: not fitted on axis {name!r}; axes: {', '.join(self.axes)}")
            places = [i for i, other in enumerate(names) if other == name]
            learned = self.weights[name]
            features = _vectorizer(self.spec, learned).transform([items[i][1] for i in places])
            scores[places] = features @ learned.coefficients
        return scores.tolist()

    def save(self, folder: Path) -> None:
        """Write `ngram.json` (spec, n-grams) and `ngram.safetensors` (idf and weights by axis) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "format": _FORMAT,
            "spec": self.spec.model_dump(mode="json"),
            "terms": {name: list(learned.terms) for name, learned in self.weights.items()},
        }
        (folder / "ngram.json").write_text(json.dumps(described, ensure_ascii=True, sort_keys=True), encoding="utf-8")
        arrays = {}
        for index, name in enumerate(sorted(self.weights)):  # numbered: an axis may have any name
            arrays[f"{index}.idf"], arrays[f"{index}.coefficients"] = self.weights[name].idf, self.weights[name].coefficients
        save_file(arrays, folder / "ngram.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; scores are equal to the last bit. Raises InputError for a missing or foreign file."""
        path = folder / "ngram.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            if described["format"] != _FORMAT:
                raise InputError(f"{path}: format {described['format']!r}, this version reads {_FORMAT}")
            arrays = load_file(folder / "ngram.safetensors")
            weights = {
                name: _Weights(tuple(terms), arrays[f"{index}.idf"], arrays[f"{index}.coefficients"])
                for index, (name, terms) in enumerate(sorted(described["terms"].items()))
            }
            return cls(NgramReward.model_validate(described["spec"]), weights)
        except FileNotFoundError as error:
            raise InputError(f"{error.filename or folder}: no such file; not a saved n-gram reward model") from None
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a saved n-gram reward model ({type(error).__name__}: {error})") from None


def _fit(pairs: Sequence[Pair], weights: np.ndarray, spec: NgramReward, name: str) -> _Weights:
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    vectorizer = _vectorizer(spec)
    sides = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    try:
        vectorizer.fit(sides[0] + sides[1])
    except ValueError as error:  # "empty vocabulary", "after pruning, no terms remain"
        raise InputError(f"models.reward (ngram): axis {name!r}: {error}") from None
    kept = np.flatnonzero(weights > 0)
    if not len(kept):
        raise InputError(f"models.reward (ngram): axis {name!r}: every pair has weight 0")
    differences = (vectorizer.transform(sides[0]) - vectorizer.transform(sides[1]))[kept]  # (n, f)
    regression = LogisticRegression(C=spec.strength, fit_intercept=False, max_iter=1000, tol=1e-6)
    # Each pair both ways round, at half its weight: two classes for scikit-learn, and no dependence on the pairs' order.
    regression.fit(vstack([differences, -differences]).tocsr(), np.repeat([1, 0], len(kept)), sample_weight=np.tile(weights[kept] / 2, 2))
    terms = tuple(str(term) for term in vectorizer.get_feature_names_out())
    return _Weights(terms, np.array(vectorizer.idf_, dtype=np.float64), np.array(regression.coef_[0], dtype=np.float64))


def _vectorizer(spec: NgramReward, learned: _Weights | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        token_pattern=_TOKEN,
        ngram_range=spec.ngrams,
        max_features=spec.max_features,
        sublinear_tf=True,
        vocabulary={term: index for index, term in enumerate(learned.terms)} if learned else None,
    )
    if learned:
        vectorizer.idf_ = learned.idf
    return vectorizer


def _resample(clusters: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """How often each pair counts when as many clusters as there are get drawn with replacement: (n,)."""
    distinct, place = np.unique(clusters, return_inverse=True)
    drawn = np.bincount(generator.integers(len(distinct), size=len(distinct)), minlength=len(distinct))
    return drawn[place].astype(float)


def train(pairs: Sequence[Pair], loss: RewardLoss, spec: NgramReward, seed: int, into: Path) -> Mapping[str, float]:
    """Fit a model to pairs, save it in `into`, and return the counts. The seed counts where the spec bootstraps.

    A linear fit knows ranking losses only, and each pair's weight is the loss's factor before softplus(-margin). Raises InputError for
    other losses.
    """
    if not getattr(loss, "is_weighted_ranking", False):
        raise InputError(f"models.reward.kind: an n-gram model cannot be trained with {loss}")
    golden = torch.tensor([pair.source == "golden_over_sample" for pair in pairs])
    weights = loss(torch.zeros(len(pairs)), golden) / math.log(2)  # softplus(0) = log 2
    NgramRewardModel.fit(pairs, weights.tolist(), spec, seed if spec.bootstrap else None).save(into)
    return {"rm_updates": 1}
