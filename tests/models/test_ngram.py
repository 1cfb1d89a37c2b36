import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from apo_bench.config.schema import NgramReward
from apo_bench.errors import InputError
from apo_bench.losses import APOLoss, RankingLoss, SFTLoss
from apo_bench.models.ngram import NgramRewardModel, train
from apo_bench.types import Message, Pair, Prompt, prompt_id

UNIGRAMS = NgramReward(ngrams=(1, 1), strength=2.0)


def _prompt(axis: str = "helpful", cluster: str = "c0") -> Prompt:
    messages = (Message("user", cluster),)
    return Prompt(prompt_id(axis, messages), messages, axis, cluster)


def _pair(chosen: str, rejected: str, axis: str = "helpful", cluster: str = "c0") -> Pair:
    return Pair(_prompt(axis, cluster), chosen, rejected)


def _scores(model: NgramRewardModel, texts: list[str], axis: str = "helpful") -> list[float]:
    return model.score([(_prompt(axis), text) for text in texts])


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.25]])
def test_weights_of_one_word_each_are_the_penalised_bradley_terry_optimum(weights: list[float]) -> None:
    """Sides are the single words "good" and "bad", so phi is a unit vector and every difference is (+1, -1) or (-1, +1).

    By symmetry w = (u, -u). With a pairs for good and b against (sums of weights), C = 2, the objective is
    (1/2)(2 u^2) + C [a log(1 + e^(-2u)) + b log(1 + e^(2u))]; its derivative 2u - 2C a s(-2u) + 2C b s(2u) = 0, s the sigmoid,
    is solved here by bisection. The score difference of the two words is then 2u.
    """
    pairs = [_pair("good", "bad"), _pair("good", "bad"), _pair("bad", "good")]
    a, b = weights[0] + weights[1], weights[2]
    u = brentq(lambda u: 2 * u - 4 * a / (1 + math.exp(2 * u)) + 4 * b / (1 + math.exp(-2 * u)), -10, 10, xtol=1e-12)
    good, bad = _scores(NgramRewardModel.fit(pairs, weights, UNIGRAMS, None), ["good", "bad"])
    assert good - bad == pytest.approx(2 * u, abs=1e-4)
    assert good == pytest.approx(-bad, abs=1e-4)


def test_score_of_unseen_words_is_zero_and_tf_idf_is_sublinear() -> None:
    """Unknown words have no features, so score 0. "good good bad": idf equal, tf 1 + ln 2 and 1, unit length, so the score is
    (u (1 + ln 2) - u) / sqrt((1 + ln 2)^2 + 1), where u is the score of "good"."""
    model = NgramRewardModel.fit([_pair("good", "bad")] * 3, None, UNIGRAMS, None)
    good, unknown, mixed = _scores(model, ["good", "xyzzy", "good good bad"])
    assert unknown == 0.0
    tf = 1 + math.log(2)
    assert mixed == pytest.approx(good * (tf - 1) / math.hypot(tf, 1), abs=1e-4)


def test_axes_that_pull_against_each_other_need_their_own_weights() -> None:
    pairs = [_pair("sorry no", "sure yes", "harmless"), _pair("sure yes", "sorry no", "helpful")] * 5
    model = NgramRewardModel.fit(pairs, None, NgramReward(), None)
    helpful, harmless = (_scores(model, ["sure yes", "sorry no"], axis) for axis in ("helpful", "harmless"))
    assert helpful[0] > helpful[1]
    assert harmless[0] < harmless[1]
    shared = NgramRewardModel.fit(pairs, None, NgramReward(per_axis=False), None)
    assert np.allclose(_scores(shared, ["sure yes", "sorry no"], "any"), 0.0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a b", "b c", "c d!", "d", "naïve ☃", ""]), st.sampled_from(["a", "b!", "c c", "d e"])), min_size=1)
)
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, sides: list[tuple[str, str]]) -> None:
    pairs = [_pair(*side, axis=("helpful", "0.idf")[i % 2], cluster=f"c{i}") for i, side in enumerate(sides)]
    model = NgramRewardModel.fit(pairs, None, NgramReward(strength=0.3), 7)
    folder = tmp_path_factory.mktemp("ngram")
    model.save(folder)
    items = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected, "unseen b")]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert NgramRewardModel.load(folder).score(items) == model.score(items)


def test_integer_weights_are_repetitions_and_zero_weight_is_absence() -> None:
    """Weight 3 is the pair three times; weight 0 drops it from the likelihood (the other words' idf does not matter for the optimum
    of one-word responses, whose vectors have unit length whatever the idf)."""
    first, second, third = _pair("good", "bad"), _pair("bad", "good"), _pair("good", "ugly")
    weighted = NgramRewardModel.fit([first, second, third], [3.0, 1.0, 0.0], UNIGRAMS, None)
    repeated = NgramRewardModel.fit([first] * 3 + [second], None, UNIGRAMS, None)
    assert np.allclose(_scores(weighted, ["good", "bad"]), _scores(repeated, ["good", "bad"]), atol=1e-4)
    assert _scores(weighted, ["ugly"]) == [0.0]


def test_seeds_resample_clusters_reproducibly() -> None:
    pairs = [_pair(f"good w{i}", f"bad w{(i * 7) % 10}", cluster=f"c{i // 2}") for i in range(20)]
    fits = [_scores(NgramRewardModel.fit(pairs, None, UNIGRAMS, seed), ["good", "w3"]) for seed in (0, 0, 1, None)]
    assert fits[0] == fits[1]
    assert fits[0] != fits[2]
    assert fits[0] != fits[3]
    one_cluster = [_pair("good", "bad", cluster="c")] * 4  # the only cluster is always drawn once
    assert _scores(NgramRewardModel.fit(one_cluster, None, UNIGRAMS, 5), ["good"]) == _scores(
        NgramRewardModel.fit(one_cluster, None, UNIGRAMS, None), ["good"]
    )


def test_order_of_pairs_does_not_matter() -> None:
    pairs = [_pair(f"good w{i}", f"bad w{(i * 7) % 10}", cluster=f"c{i}") for i in range(9)]
    forward, backward = (_scores(NgramRewardModel.fit(some, None, NgramReward(), None), ["good w1"]) for some in (pairs, pairs[::-1]))
    assert forward == pytest.approx(backward, abs=1e-4)


def test_duels_weigh_their_part_of_the_coefficient(tmp_path) -> None:
    """apo_coeff 2 over 4 samples: each duel counts half a human pair, and ranking alone counts it whole."""
    pairs = [*[_pair("good", "bad")] * 2, *[Pair(_prompt(), "bad", "good", "golden_over_sample")] * 2]
    for loss, weights in ((APOLoss(2.0, 4), [1.0, 1.0, 0.5, 0.5]), (RankingLoss(), [1.0] * 4)):
        folder = tmp_path / type(loss).__name__
        folder.mkdir()
        assert train(pairs, loss, UNIGRAMS.model_copy(update={"bootstrap": False}), 3, folder) == {"rm_updates": 1}
        expected = _scores(NgramRewardModel.fit(pairs, weights, UNIGRAMS, None), ["good", "bad"])
        assert _scores(NgramRewardModel.load(folder), ["good", "bad"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [APOLoss(0.1, 4, "difference"), SFTLoss()])
def test_losses_that_are_no_ranking_are_refused(tmp_path, loss) -> None:
    with pytest.raises(InputError, match=r"^models\.reward\.kind: an n-gram model cannot be trained with [^\n]*$"):
        train([_pair("good", "bad")], loss, UNIGRAMS, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_user_can_get_wrong(tmp_path) -> None:
    model = NgramRewardModel.fit([_pair("good", "bad")], None, UNIGRAMS, None)
    with pytest.raises(InputError, match="not fitted on axis 'harmless'; axes: helpful"):
        _scores(model, ["good"], "harmless")
    with pytest.raises(InputError, match="no preference pairs"):
        NgramRewardModel.fit([], None, UNIGRAMS, 0)
    with pytest.raises(InputError, match="axis 'helpful': empty vocabulary"):
        NgramRewardModel.fit([_pair("", " ")], None, UNIGRAMS, 0)
    with pytest.raises(InputError, match="every pair has weight 0"):
        NgramRewardModel.fit([_pair("good", "bad")], [0.0], UNIGRAMS, None)
    with pytest.raises(InputError, match="finite"):
        NgramRewardModel.fit([_pair("good", "bad")], [math.nan], UNIGRAMS, 0)
    with pytest.raises(InputError, match=r"ngram\.json: no such file"):
        NgramRewardModel.load(tmp_path)
    (tmp_path / "ngram.json").write_text("{}")
    with pytest.raises(InputError, match="not a saved n-gram reward model"):
        NgramRewardModel.load(tmp_path)
