"""A cluster as a file describes it: one of `configs/cluster/`, or a user's own."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from common.config_files import CLUSTERS, cluster_names, read_config_file
from common.errors import UserError
from common.words import nearest

_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a job of a cluster asks for."""

    name: str
    partition: str | None = None
    account: str | None = None
    nodes: int = 1
    """the most that a job may have"""
    gpus_per_node: int = 0
    processes_per_node: int = 1
    cpus_per_node: int = 1
    memory_gib: float | None = None
    """of a node's host; None: what the partition gives"""
    time: str = "24:00:00"
    """[DAYS-]HOURS:MINUTES[:SECONDS]"""
    warning_seconds: int = 300
    """how long before the time limit the run is warned"""
    gpu_request: str = "--gpus-per-node={gpus}"
    hardware: str = "cpu"
    """the planner's name of the devices"""
    modules: list[str] = dataclasses.field(default_factory=list)
    container: str | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    options: list[str] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> int:
        """The time limit."""
        return seconds_of(self.time) or 0


def seconds_of(time: str) -> int | None:
    """A time limit in seconds; None if it is none."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def load_cluster(name: str, **changes: Any) -> Cluster:
    """The cluster of a name or of a YAML file. `changes`: keys that the command line sets, where not None.

    Raises:
        UserError: there is no such cluster, or a key of it is unknown, missing or impossible.
    """
    path = Path(name)
    if name in cluster_names():
        values = read_config_file(CLUSTERS, f"{name}.yaml")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    else:
        hint = f"; did you mean '{near}'?" if (near := nearest(name, cluster_names())) else ""
        raise UserError(f"--cluster {name}: there is {', '.join(cluster_names())}, or a YAML file of your own{hint}")
    if not isinstance(values, dict):
        raise UserError(f"--cluster {name}: not a cluster (see configs/cluster/gpu.yaml for the form)")
    return _checked(name, values | {key: value for key, value in changes.items() if value is not None})


def _checked(name: str, values: dict[str, Any]) -> Cluster:
    fields = {field.name: field for field in dataclasses.fields(Cluster) if field.name != "name"}
    problems = []
    for key, value in values.items():
        if key not in fields:
            hint = f"; did you mean '{near}'?" if (near := nearest(str(key), list(fields))) else ""
            problems.append(f"unknown key '{key}'{hint}")
        elif value == "???":
            problems.append(f"{key} must be given: --{key} NAME, or in a file of your own")
        elif not _fits(kind := str(fields[key].type).removeprefix("<class '").removesuffix("'>"), value):
            problems.append(f"{key}={value!r} is not {kind.replace('None', 'null')}")
    if not problems:
        cluster = Cluster(name=Path(name).stem, **values)
        problems = list(_impossible(cluster))
    if problems:
        raise UserError("\n".join([f"--cluster {name}: {problems[0]}", *problems[1:4]]))
    return cluster


def _fits(kind: str, value: Any) -> bool:
    if value is None:
        return "None" in kind
    if kind.startswith("list"):
        return isinstance(value, list) and all(isinstance(item, str) and "\n" not in item for item in value)
    if kind.startswith("dict"):
        return isinstance(value, dict) and all(isinstance(item, str) and "\n" not in item for item in value.values())
    if kind.startswith(("int", "float")):
        return type(value) in ((int,) if kind == "int" else (int, float)) and value >= 0
    return isinstance(value, str) and "\n" not in value


def _impossible(cluster: Cluster) -> Any:
    if seconds_of(cluster.time) is None:
        yield f"time={cluster.time!r} is not [DAYS-]HOURS:MINUTES[:SECONDS], such as '24:00:00' (in quotes)"
    if "{gpus}" not in cluster.gpu_request:
        yield "gpu_request lacks {gpus}, such as --gres=gpu:{gpus}"
    for key in ("nodes", "processes_per_node", "cpus_per_node"):
        if getattr(cluster, key) < 1:
            yield f"{key} must be at least 1"
    if cluster.gpus_per_node and cluster.processes_per_node > cluster.gpus_per_node:
        yield (
            f"processes_per_node={cluster.processes_per_node} on gpus_per_node={cluster.gpus_per_node}: a process needs a GPU "
            "of its own"
        )
    if cluster.cpus_per_node < cluster.processes_per_node:
        yield f"cpus_per_node={cluster.cpus_per_node} for {cluster.processes_per_node} processes: a process needs one at least"
    for word in cluster.environment:
        if not _WORD.fullmatch(word):
            yield f"environment: {word!r} is no name of a variable"
