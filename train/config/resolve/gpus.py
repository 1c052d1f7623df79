"""The GPUs of this machine, found without torch."""

from pathlib import Path

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/kfd")  # NVIDIA's and AMD's on Linux


def gpu_names() -> list[str]:
    """The names that the driver gives the GPUs; AMD's driver gives none, so they are "AMD GPU". Empty where there is none."""
    names = []
    for entry in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = entry.read_text(encoding="utf-8").splitlines()
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return names or [name for name, driver in zip(("NVIDIA GPU", "AMD GPU"), _DRIVERS, strict=True) if Path(driver).exists()]
