"""Read the folder of a run. Imports no torch."""

from pathlib import Path

import yaml

from common.errors import UserError
from train.checkpoint.manifest import newest_first, step_of
from train.config import Config, parse_config
from train.config.compose import with_defaults


def path_of(config: Config) -> Path:
    """The folder of a run."""
    return Path(config.run.dir).expanduser() / config.run.name


def named_checkpoint(key: str, value: str) -> Path:
    """The folder of the checkpoint that the user named as `value` of `key`.

    Raises:
        UserError: it is not a checkpoint.
    """
    folder = Path(value).expanduser()
    if not folder.is_dir() or step_of(folder) is None:
        near = [folder / "checkpoints", folder, folder.parent]
        checkpoints = [str(checkpoint) for place in near for checkpoint in newest_first(place)][:3]
        hint = (
            f"there is {', '.join(checkpoints)}"
            if checkpoints
            else f"type {'auto, never, restart or ' * (key == 'run.resume')}a checkpoint's folder, such as "
            "runs/NAME/checkpoints/step_00000100"
        )
        raise UserError(f"{key}={value} is no checkpoint: {hint}")
    return folder


def load_run_config(run: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        UserError: `run` is not a run's folder, or this version cannot read its configuration.
    """
    path = run / "config.yaml"
    if not path.is_file():
        grandparent = run.absolute().parent.parent
        hint = f"; it is a checkpoint of the run {run.parent.parent}" if (grandparent / "config.yaml").is_file() else ""
        raise UserError(f"{run} is not a run: there is no {path}{hint}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return parse_config(with_defaults(plain) if isinstance(plain, dict) else plain)
    except (yaml.YAMLError, UserError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a configuration of this version: {first}") from None
