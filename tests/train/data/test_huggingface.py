"""Data sets of Hugging Face, saved on disk: the same tokens as of the same texts in a file."""

import re
from dataclasses import replace

import pytest

from common.errors import UserError
from train.config.sections.corpus import HuggingFaceCorpusConfig
from train.config.sections.tokenizer import BytesTokenizerConfig
from train.data.corpus import open_corpus
from train.data.prepare import prepare
from train.data.shards import open_shards

datasets = pytest.importorskip("datasets")

BYTES = BytesTokenizerConfig(name="bytes")


@pytest.fixture
def texts(workplace) -> list[str]:
    return [workplace.sentence(number) + 'é\u2028漢\n\t"\\' for number in range(200)]


@pytest.fixture
def config(workplace, texts) -> HuggingFaceCorpusConfig:
    saved = datasets.Dataset.from_dict({"body": texts, "number": list(range(len(texts)))})
    datasets.DatasetDict({"train": saved, "test": saved.select(range(3))}).save_to_disk(str(workplace.text / "saved"))
    return HuggingFaceCorpusConfig(
        name="huggingface",
        dataset=str(workplace.text / "saved"),
        config=None,
        split="train",
        text_column="body",
        cache_dir=str(workplace.cache),
        validation_fraction=0.1,
    )


def test_the_tokens_are_those_of_the_same_texts_in_a_file(workplace, texts, config, capsys):
    folder = prepare(config, BYTES, progress=False)
    assert "reading the data set" in capsys.readouterr().err
    assert prepare(config, BYTES, progress=False) == folder
    assert capsys.readouterr().err == ""
    own = workplace.corpus(workplace.write_json_lines(workplace.text / "a.jsonl", texts))
    found, expected = (workplace.texts_of(open_shards(prepare(data, BYTES, progress=False))) for data in (config, own))
    assert found == expected
    assert list(open_corpus(replace(config, split="test")).documents()) == texts[:3]


def test_a_data_set_without_splits_and_one_saved_anew_in_its_place(workplace, texts, config):
    alone = replace(config, dataset=str(workplace.text / "alone"))
    for part in (texts[:2], texts[2:5]):
        datasets.Dataset.from_dict({"body": part}).save_to_disk(alone.dataset)
        assert list(open_corpus(alone).documents()) == part


@pytest.mark.parametrize(
    "change, said",
    [
        ({"split": "dev"}, "no split 'dev'; type data.split=... with one of: test, train"),
        ({"text_column": "text"}, "no column 'text'; it has: body, number"),
        ({"text_column": "number"}, "row 0: 'number' is int, not a string"),
        ({"config": "en"}, "leave data.config out"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(workplace, config, change, said):
    with pytest.raises(UserError, match=re.escape(said)):
        open_corpus(replace(config, **change))
    workplace.assert_nothing_left()


def test_a_folder_of_other_files_is_refused(workplace, config):
    with pytest.raises(UserError, match="type data=files"):
        open_corpus(replace(config, dataset=str(workplace.cache.parent)))
