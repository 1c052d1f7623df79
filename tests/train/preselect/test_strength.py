"""The predictive strength of documents against the formula, pair by pair."""

import numpy as np
import pytest

from common.errors import UserError
from train.preselect import predictive_strength


def by_formula(losses, ability) -> float:
    concordant, pairs = 0, 0
    for weaker, weaker_loss in zip(ability, losses, strict=True):
        for abler, abler_loss in zip(ability, losses, strict=True):
            if weaker < abler:
                pairs += 1
                concordant += weaker_loss > abler_loss
    return concordant / pairs


@pytest.mark.parametrize("models", [2, 3, 6, 9])
def test_it_is_the_share_of_concordant_pairs(models):
    random = np.random.default_rng(models)
    ability = random.permutation(models) / 7
    losses = random.integers(0, 5, (300, models)) / 4  # few levels: many ties
    expected = [by_formula(row, ability) for row in losses]
    assert predictive_strength(losses, ability).tolist() == expected


def test_hand_made_documents():
    losses = [[3, 2, 1], [1, 2, 3], [1, 1, 1], [2, 2, 1], [3, 1, 2]]
    assert predictive_strength(losses, [10, 20, 30]).tolist() == pytest.approx([1, 0, 0, 2 / 3, 2 / 3])


@pytest.mark.parametrize(
    "losses, ability, word",
    [
        ([[1.0]], [1.0], "1 model cannot"),
        ([[1.0, 2.0]], [1.0, 1.0], "same ability"),
        ([[1.0, float("nan")]], [1.0, 2.0], "finite"),
        ([[1.0, 2.0]], [1.0, 2.0, 3.0], "one column per model"),
    ],
)
def test_what_cannot_be_ranked_is_refused(losses, ability, word):
    with pytest.raises(UserError, match=word):
        predictive_strength(losses, ability)
