"""What a run needs on disk, checked before any process group exists. Rules see the configuration alone. Imports no torch."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from train.config.resolve.architecture import architecture_of
from train.config.schema import Config
from train.model.huggingface import problems


def unmet_preconditions(config: Config) -> Iterator[str]:
    """A line for every reason why the model cannot start from `model.initial_weights`, and for every mirror without
    its package."""
    for name in config.logger.mirrors:
        if find_spec(name) is None:
            yield f"logger={name}: the package {name} is not installed; type pip install {name}"
    folder = config.model.initial_weights
    if folder is not None:
        for problem in problems(Path(folder).expanduser(), architecture_of(config.model)):
            yield f"model.initial_weights={folder}: {problem}"
