"""Words: values in Hydra's grammar, ranges, the nearest known name."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from common.words import hydra_word, nearest, ranges

VALUES = [None, True, 3, 1e-4, 2.5e20, "plain", "a b", "it's", '"', "\\", "[x]", "{y}", "a,b", "a=b", "#", "é", "", "3", "null",
          "1e3", "runs/a*.txt", ["a b", 1, None]]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_hydra_reads_back_the_value_that_was_written(value):
    assert OverridesParser.create().parse_override(f"key={hydra_word(value)}").value() == value


def test_ranges_join_what_is_consecutive():
    assert ranges([5, 0, 2, 1]) == "0-2, 5"
    assert ranges([]) == ""


def test_the_nearest_name_is_one_that_is_alike_or_none():
    assert nearest("tokenz", ["tokens", "loss"]) == "tokens"
    assert nearest("zzz", ["tokens", "loss"]) is None
