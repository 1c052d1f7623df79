"""Machines as data: peak rates, memory, links, and the dense peak that every MFU is divided by.

A machine is a YAML file of `configs/_hardware/`, or a user's own file of the same form. No torch at import.
"""

import difflib
import os
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

FOLDER = "_hardware"


HOST_SHARE = 0.8
"""Of a host's memory, that processes without a GPU can have together."""


def host_memory() -> int:
    """Bytes of this host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, kw_only=True)
class Link:
    """The wires of one level of a machine: inside a package, inside a node, between nodes.

    Attributes:
        devices: devices that this level connects; None on the last level, which has no end.
        bandwidth: bytes/s that one device sends while it receives as much (half of what data sheets call bidirectional).
        latency: seconds before a message begins to move.
    """

    level: str
    devices: int | None
    bandwidth: float
    latency: float = 0.0
    mesh: bool = False
    """`bandwidth` is that of all wires of a device together, one to each other device of the level"""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A kind of device and how devices are connected.

    Attributes:
        peak: dense FLOP/s by precision (bf16, fp32, ...).
        memory_gib: what the device's driver offers.
        memory_bandwidth: bytes/s.
        links: from the innermost level to the outermost.
        topology: of a node: "switch" (one port a device) or "mesh" (a wire for every pair).
        watts: of a device under load with its share of the node; dollars_per_hour: None where no price is stated.
    """

    name: str
    peak: dict[str, float]
    memory_gib: float
    memory_bandwidth: float
    links: tuple[Link, ...]
    topology: str = "switch"
    watts: float | None = None
    dollars_per_hour: float | None = None
    source: str = ""
    like: str | None = None
    """the machine whose constants serve for this one"""

    @property
    def kind(self) -> str:
        """The name under which recipes keep constants."""
        return self.like or self.name

    @property
    def node_devices(self) -> int:
        """Devices in a node: those that a level other than the last connects."""
        return max([link.devices for link in self.links if link.devices is not None], default=1)

    def flops(self, precision: str) -> float:
        """Dense peak FLOP/s in a precision; fp64 has a machine's fp32 rate where it is not listed."""
        return self.peak.get(precision) or self.peak["fp32"]


@cache
def hardware_names() -> list[str]:
    """The machines that come with the project."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("configs").joinpath(FOLDER).iterdir())


def load_hardware(name: str) -> Hardware:
    """A machine of `configs/_hardware/` by name, or a user's YAML file by path.

    Raises:
        UserError: there is no such machine, or a value is missing or impossible.
    """
    if name in hardware_names():
        return _known(name)
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"--hardware {name}: there is no such file")
        return hardware_from(yaml.safe_load(path.read_text(encoding="utf-8")), name)
    near = difflib.get_close_matches(name, hardware_names(), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(f"--hardware {name}: not known{hint} (known: {', '.join(hardware_names())}, or a YAML file of your own)")


@cache
def _known(name: str) -> Hardware:
    return hardware_from(yaml.safe_load(files("configs").joinpath(FOLDER, f"{name}.yaml").read_text("utf-8")), name)


def hardware_from(values: Any, name: str) -> Hardware:
    """The machine that a YAML file describes.

    Raises:
        UserError: a value is missing, not a number or not positive.
    """
    if not isinstance(values, dict):
        raise UserError(f"{name}: not a machine; it must have peak, memory_gib, memory_bandwidth and links")
    needed = ("peak", "memory_gib", "memory_bandwidth", "links")
    if missing := [key for key in needed if key not in values]:
        raise UserError(f"{name}: lacks {', '.join(missing)} (see configs/_hardware/h100.yaml for the form)")
    known = {*needed, "topology", "watts", "dollars_per_hour", "source", "like"}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not isinstance(values["peak"], dict) or "fp32" not in values["peak"] or not values["links"]:
        raise UserError(f"{name}: peak must list fp32 (and bf16), links at least one level")
    links = []
    for number, link in enumerate(values["links"]):
        where = f"{name}: links[{number}]"
        if missing := [key for key in ("level", "bandwidth") if key not in link]:
            raise UserError(f"{where} lacks {', '.join(missing)}")
        devices = link.get("devices")
        if devices is None and number + 1 < len(values["links"]):
            raise UserError(f"{where}.devices: only the last level may connect any number of devices; type how many")
        links.append(
            Link(
                level=str(link["level"]),
                devices=None if devices is None else int(_positive(devices, f"{where}.devices")),
                bandwidth=_positive(link["bandwidth"], f"{where}.bandwidth"),
                latency=float(link.get("latency", 0.0)),
                mesh=bool(link.get("mesh", False)),
            )
        )
    return Hardware(
        name=Path(name).stem,
        peak={key: _positive(value, f"{name}: peak.{key}") for key, value in values["peak"].items()},
        memory_gib=_positive(values["memory_gib"], f"{name}: memory_gib"),
        memory_bandwidth=_positive(values["memory_bandwidth"], f"{name}: memory_bandwidth"),
        links=tuple(links),
        topology=values.get("topology", "switch"),
        watts=values.get("watts"),
        dollars_per_hour=values.get("dollars_per_hour"),
        source=str(values.get("source", "")),
        like=values.get("like"),
    )


def _positive(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} is {value!r}; it must be a number above 0, such as 4.5e11") from None
    if not number > 0 or number == float("inf"):
        raise UserError(f"{where} is {value!r}; it must be a number above 0, such as 4.5e11")
    return number


# What a GPU calls itself -> the machine; the first entry whose words are part of the name applies.
_DEVICE_NAMES = (
    ("GB200", "gb200"),
    ("B200", "b200"),
    ("H200", "h200"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100"),
    ("A100-SXM4-40GB", "a100-40g"),
    ("A100-PCIE-40GB", "a100-40g"),
    ("A100", "a100-80g"),
    ("MI250X", "mi250x"),
    ("MI300X", "mi300x"),
)


def hardware_of(device_name: str) -> Hardware | None:
    """The machine that a GPU's own name means; None for one that is not listed."""
    found = next((machine for words, machine in _DEVICE_NAMES if words in device_name), None)
    return load_hardware(found) if found else None


def dense_peak(device: Any, dtype: Any) -> float | None:
    """Dense peak in FLOP/s of one `torch.device` for matrix products in a `torch.dtype`.

    For a GPU the data sheet's value (None for a GPU or dtype that is not listed). For a CPU, which has no such value, the rate
    of the fastest of a few matrix products with this process's threads, measured in about a tenth of a second.
    """
    if device.type == "cuda":
        import torch

        machine = hardware_of(torch.cuda.get_device_name(device))
        names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
        return machine.peak.get(names[dtype]) if machine and dtype in names else None
    return _measured_peak(device, dtype)


def _measured_peak(device: Any, dtype: Any) -> float:
    import torch

    best, seconds, side = 0.0, 0.0, 64
    # Larger products come nearer to the peak, but one of side 1,024 takes six seconds on a CPU without bf16 instructions.
    while side < 1024 and seconds < 0.01:
        side *= 2
        left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            start = time.perf_counter()
            left @ right
            seconds = time.perf_counter() - start
            best = max(best, 2.0 * side**3 / seconds)
    return best
