"""From words to a typed configuration: what composes, and what is said about what does not."""

import dataclasses
import typing

import pytest
import yaml

from common.config_files import group_options
from common.errors import UserError
from train.config import load_config, parse_config
from train.config.compose import known_keys, section_defaults

NEEDED = {
    "data=files": ["data.files=[a.txt]"],
    "data=huggingface": ["data.dataset=a"],
    "tokenizer=file": ["tokenizer.path=a.json"],
}
OPTIONS = [f"{group}={option}" for group, options in group_options().items() for option in options]
DEFAULT_TOKENS = section_defaults("train", None)["tokens"]
# Left out of a run's identity: losses do not depend on them.
NOT_IDENTITY = {
    "data.cache_dir",
    "train.tokens",
    "train.profile",
    "train.dry_run",
    "train.microbatch",
    "train.device",
    "train.compile",
    "train.attention",
    "eval.every_tokens",
    "eval.sets",
    "eval.tasks",
    "run.name",
    "run.dir",
    "run.resume",
    "run.resume_force",
}


def test_mup_fills_in_the_papers_multipliers():
    """PowerLM-3B: 40 layers, width 2304, base 256: m_emb 12, m_res 0.22, attention / 64 (arXiv 2408.13359, table 1 and 4)."""
    sizes = ["model.hidden_size=2304", "model.num_layers=40", "model.num_heads=36"]
    config = load_config(["optimizer.mup=true", *sizes])
    assert config.mup_width == 9
    model = config.model
    assert (model.embedding_multiplier, model.attention_multiplier) == (12, 1 / 64)
    assert round(model.residual_multiplier, 2) == 0.22
    assert model.logit_multiplier == 1 / 9
    assert load_config(["optimizer.mup=true", "model.embedding_multiplier=3"]).model.embedding_multiplier == 3
    plain = load_config(sizes)
    assert plain.mup_width is None
    assert (plain.model.embedding_multiplier, plain.model.residual_multiplier, plain.model.logit_multiplier) == (1, 1, 1)
    assert plain.model.attention_multiplier == 1 / 8


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    return str(caught.value)


def flat(tree: dict[str, typing.Any], prefix: str = "") -> dict[str, typing.Any]:
    found: dict[str, typing.Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_and_types(option):
    config = load_config([option, *NEEDED.get(option, [])])
    group, name = option.split("=")
    if group == "logger":
        assert config.logger.mirrors == [each for each in [name] if each != "none"]
    elif group not in ("model", "experiment"):
        assert getattr(config, group).name == name
    assert parse_config(config.as_dict()) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("train.tokens=1.5e6", "train.tokens", 1_500_000),
        ("model.init_std=1", "model.init_std", 1.0),
        ("run.name=7", "run.name", "7"),
        ("+run.seed=5", "run.seed", 5),
        ("++run.seed=5", "run.seed", 5),
        ("+schedule=constant", "schedule.name", "constant"),
        ("model.num_heads=1", "model.num_kv_heads", 1),
        ("model.num_kv_heads=2", "model.num_kv_heads", 2),
        ("model.vocab_size=300", "tokenizer.vocab_size", 300),
        ("experiment=demo", "parallel.shard", 2),
        ("experiment=null", "run.name", "run"),
    ],
)
def test_values_arrive_with_their_type(override, key, value):
    found = flat(load_config([override]).as_dict())[key]
    assert found == value
    assert type(found) is type(value)


def test_the_command_line_wins_over_the_recipe_wherever_it_stands():
    assert load_config(["parallel.shard=4", "experiment=demo"]).parallel.shard == 4


def test_the_later_word_wins():
    assert load_config(["run.seed=1", "run.seed=2"]).run.seed == 2
    assert load_config(["schedule=wsd", "schedule=constant"]).schedule.name == "constant"
    assert load_config(["experiment=demo", "experiment=null"]) == load_config()


def test_the_width_of_a_head_follows_from_the_width():
    assert load_config(["model.hidden_size=128", "model.num_heads=8"]).model.head_dim == 16


@pytest.mark.parametrize(
    "overrides, tokens, steps",
    [
        ([], DEFAULT_TOKENS, None),
        (["train.steps=5"], None, 5),
        (["+train.steps=5"], None, 5),
        (["train.tokens=9"], 9, None),
        (["train.tokens=9", "train.steps=null"], 9, None),
        (["train.steps=5", "train.tokens=null"], None, 5),
        (["train.steps=5", "train.tokens=9"], 9, 5),  # refused by the rules
        (["train.tokens=null"], None, None),  # likewise
        (["train.steps=null"], DEFAULT_TOKENS, None),
    ],
)
def test_one_length_takes_the_place_of_the_other_ones_default(overrides, tokens, steps):
    train = load_config(overrides).train
    assert (train.tokens, train.steps) == (tokens, steps)


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    "word, nearest",
    [
        ("train.step=1", "train.steps"),
        ("train.token=1", "train.tokens"),
        ("model.hidden=1", "model.hidden_size"),
        ("layers=2", None),
        ("num_layers=2", "model.num_layers"),
        ("shard=2", "parallel.shard"),
        ("data.path=[a]", None),
        ("modle=demo", "model"),
        ("hydra.run.dir=x", "run.dir"),
        ("data.files.0=x", "data.files"),
    ],
)
def test_an_unknown_key_names_the_nearest_however_it_is_typed(plus, word, nearest):
    said = refused(plus + word)
    assert said.startswith(f"unknown key '{word.split('=')[0]}'")
    assert "--help" in said
    if nearest:
        assert f"did you mean '{nearest}'?" in said


@pytest.mark.parametrize(
    "word, nearest",
    [("schedule=wds", "wsd"), ("tokenizer=byte", "bytes"), ("data=file", "files"), ("experiment=dmo", "demo")],
)
def test_a_wrong_option_lists_all_and_names_the_nearest(word, nearest):
    said = refused(word)
    assert f"did you mean '{nearest}'?" in said
    assert all(option in said for option in group_options()[word.split("=")[0]])


@pytest.mark.parametrize("group", [group for group in group_options() if group != "experiment"])
@pytest.mark.parametrize("value", ["null", "???", "", "[a]", "{a: 1}"])
def test_a_group_that_every_run_needs_cannot_be_taken_away(group, value):
    assert refused(f"{group}={value}").startswith(f"{group}=")


@pytest.mark.parametrize(
    "overrides, option",
    [
        (["data.text_column=body"], "data=files"),
        (["+data.files=[a]"], "data=files"),
        (["data=files", "data.files=[a]", "data.include_tests=true"], "data=stdlib"),
        (["schedule=constant", "schedule.floor=0"], "schedule=wsd"),
        (["tokenizer=bytes", "tokenizer.vocab_size=300"], "tokenizer=bpe"),
    ],
)
def test_a_key_of_another_option_says_which(overrides, option):
    assert f"type {option}, or leave " in refused(*overrides)


@pytest.mark.parametrize("word", ["schedule.name=constant", "data.name=files", "tokenizer.name=null"])
def test_the_name_of_an_option_is_not_set_by_itself(word):
    assert f"type {word.replace('.name', '')}" in refused(word)


def test_what_has_no_default_is_asked_for_all_at_once():
    said = refused("data=files", "tokenizer=file")
    assert "data.files has no default: add data.files=..." in said
    assert "tokenizer.path has no default: add tokenizer.path=..." in said


@pytest.mark.parametrize(
    "word, said",
    [
        ("train.steps=many", "train.steps=many: input should be a valid integer"),
        ("train.steps=1.5", "train.steps=1.5: input should be a valid integer"),
        ("train.tokens=1e30", "train.tokens=1e+30: this number is too large; type 9e18 or less"),
        ("train.steps=0", "train.steps=0: input should be greater than 0"),
        ("train.microbatch=null", "train.microbatch=null: "),
        ("train.precision=fp16", "train.precision=fp16: input should be 'fp32', 'bf16' or 'fp64'"),
        ("train.compile=maybe", "train.compile=maybe: input should be a valid boolean"),
        ("run.name='../a'", "run.name=../a: "),
        ("run.name=", "run.name=: "),
        ("run.seed=-1", "run.seed=-1: "),
        ("schedule.peak=inf", "schedule.peak=inf: input should be a finite number"),
        ("schedule.peak=nan", "schedule.peak=nan: "),
        ("train.z_loss=-1", "train.z_loss=-1: "),
        ("data.validation_fraction=1", "data.validation_fraction=1: input should be less than 1"),
        ("model.head_dim=7", "model.head_dim=7: input should be a multiple of 2"),
        ("model.hidden_size=wide", "model.hidden_size=wide: "),
        ("model.num_heads=0", "model.num_heads=0: "),
        ("train=5", "train=5: "),
        ("run=null", "run=null: "),
        ("run.name=${nothing}", "run.name: Interpolation key 'nothing' not found"),
    ],
)
def test_a_wrong_value_is_shown_with_its_key_in_one_line(word, said):
    assert refused(word).startswith(said)
    assert "\n" not in refused(word)


def test_wrong_values_are_shown_all_at_once():
    said = refused("train.steps=0", "model.num_layers=x", "optimizer.beta1=1", "schedule.peak=-1").splitlines()
    assert sorted(line.split("=")[0] for line in said) == [
        "model.num_layers",
        "optimizer.beta1",
        "schedule.peak",
        "train.steps",
    ]


def test_unknown_keys_are_shown_all_at_once():
    assert len(refused("train.step=1", "model=demmo", "runn.name=a").splitlines()) == 3


def test_heads_that_do_not_divide_the_width_need_a_width_of_their_own():
    assert "model.hidden_size=128 / model.num_heads=3" in refused("model.hidden_size=128", "model.num_heads=3")
    assert load_config(["model.num_heads=3", "model.head_dim=32"]).model.head_dim == 32


@pytest.mark.parametrize("word", ["~train.tokens", "~model", "~data=stdlib"])
def test_nothing_can_be_deleted(word):
    assert "cannot be deleted" in refused(word)


@pytest.mark.parametrize("word", ["train.steps=1,2", "train.steps=range(1,3)", "model=demo,demo", "run.seed=choice(1,2)"])
def test_one_command_is_one_run(word):
    assert "one command is one run" in refused(word)


@pytest.mark.parametrize("word", ["train", "a b", "train.steps 5"])
def test_what_is_no_override_is_shown(word):
    assert refused(word) == f"cannot read '{word}': type KEY=VALUE, such as train.tokens=1500000"


def test_special_characters_are_shown_with_the_quotes_they_need():
    assert refused("run.dir=~/a b").endswith("""special characters need quotes: 'run.dir="~/a b"'""")
    assert load_config(['run.dir="~/a b"']).run.dir == "~/a b"


FREE_SECTIONS = ("parallel.", "checkpoint.", "health.", "logger.")


def test_several_mirrors_at_once():
    assert load_config(["logger=[wandb,tensorboard]"]).logger.mirrors == ["wandb", "tensorboard"]
    assert "no such option, there is none, tensorboard, wandb" in refused("logger=[wandb,mlflow]")


def test_identity_has_everything_but_what_losses_do_not_depend_on():
    config = load_config()
    everything = {key for key in flat(config.as_dict()) if not key.startswith(FREE_SECTIONS)}
    assert set(flat(config.identity())) == everything - NOT_IDENTITY


@pytest.mark.parametrize(
    "override",
    ["model.num_layers=2", "run.seed=1", "train.steps=3", "train.precision=bf16", "schedule.floor=1e-5", "eval.tokens=9"],
)
def test_what_losses_depend_on_changes_the_identity(override):
    assert load_config([override]).identity_hash() != load_config().identity_hash()


@pytest.mark.parametrize(
    "override",
    [
        *("parallel.shard=2", "parallel.replicate=2", "train.microbatch=1", "train.compile=true"),
        *("data.cache_dir=x", "run.name=x", "run.dir=x", "run.resume=never", "eval.every_tokens=7"),
    ],
)
def test_what_they_do_not_depend_on_does_not(override):
    assert load_config([override]).identity_hash() == load_config().identity_hash()


def test_the_length_is_whole_steps():
    batch = ["train.batch_tokens=8192", "train.sequence=256"]
    config = load_config([*batch, "train.tokens=8193"])
    assert (config.steps, config.total_tokens) == (2, 16384)
    config = load_config([*batch, "train.steps=3", "parallel.replicate=2", "parallel.shard=2", "train.microbatch=2"])
    assert (config.steps, config.total_tokens) == (3, 3 * 8192)
    assert config.accumulation == 8192 // (256 * 2 * 4)


def test_every_key_of_the_files_has_a_type_and_every_type_a_default():
    """Neither configs/ nor the classes know a key that the other does not."""
    files = {key for key, _ in known_keys().items() if "." in key}
    typed = set()
    from train.config import Config

    for section, annotation in typing.get_type_hints(Config).items():
        for cls in typing.get_args(annotation) or (annotation,):
            typed |= {f"{section}.{field.name}" for field in dataclasses.fields(cls)}
    assert files == typed
