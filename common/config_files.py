"""The defaults in the YAML files of `configs/`."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


def read_config_file(*path: str) -> dict[str, Any]:
    """The content of a file of `configs/`, nothing resolved."""
    return dict(_read(*path))


@cache
def _read(*path: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(files("configs").joinpath(*path).read_text(encoding="utf-8"))
    return values


CLUSTERS = "cluster"
"""the folder of clusters, which the launcher reads: no group of a run's configuration"""


@cache
def cluster_names() -> list[str]:
    """The clusters that come with the project."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("configs").joinpath(CLUSTERS).iterdir())


@cache
def group_options() -> dict[str, list[str]]:
    """Every configuration group and its options. A file whose name begins with `_` is not an option: others build upon it."""
    folders = sorted((entry for entry in files("configs").iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return {
        folder.name: sorted(option.name.removesuffix(".yaml") for option in folder.iterdir() if not option.name.startswith("_"))
        for folder in folders
        if not folder.name.startswith("_") and folder.name != CLUSTERS
    }


def option_values(group: str, option: str) -> dict[str, Any]:
    """The values of a group's option, including those of the files it builds upon."""
    values: dict[str, Any] = {}
    own = read_config_file(group, f"{option}.yaml")
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":  # an experiment may also choose options of other groups
            values |= option_values(group, base)
    return values | own


def training_defaults(model: str | None) -> dict[str, Any]:
    """How a model of `configs/model/` is usually trained: key -> value. Empty for the default model."""
    path = files("configs").joinpath("_training", f"{model}.yaml")
    return read_config_file("_training", f"{model}.yaml") if path.is_file() else {}


def default_options() -> dict[str, str | None]:
    """Group -> its default option; None: no option by default."""
    entries = [entry for entry in read_config_file("config.yaml")["defaults"] if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items()}
