"""The GPUs of this machine, found without torch."""

from pathlib import Path

from parallel.names import DeviceName

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/kfd")  # NVIDIA's and AMD's on Linux


def gpu_names(device: DeviceName) -> list[str]:
    """The names that the driver gives the GPUs that `train.device` means; AMD's driver gives none, so they are "AMD GPU".

    Empty where there is none, or the CPU is to compute.
    """
    if device == "cpu":
        return []
    names = []
    for entry in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = entry.read_text(encoding="utf-8").splitlines()
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return names or [name for name, driver in zip(("NVIDIA GPU", "AMD GPU"), _DRIVERS, strict=True) if Path(driver).exists()]
