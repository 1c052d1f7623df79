"""Dense peak FLOP/s of devices: the denominator of every MFU."""

import time

import torch

# Dense (not sparse) FLOP/s of bf16 tensor cores and of fp32 without TF32, from the makers' data sheets; SXM but where the name
# says PCIe. The first entry whose name is part of the device's name applies.
_DATA_SHEET: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("MI250X", 191.5e12, 23.9e12),  # one of its two dies: a process sees one
)


def dense_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense peak in FLOP/s of one device for matrix products in `dtype`.

    For a GPU the data sheet's value (None for a GPU or dtype that is not listed). For a CPU, which has no such value, the rate
    of the fastest of a few matrix products with this process's threads, measured in about a tenth of a second.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, bf16, fp32 in _DATA_SHEET:
            if known in name:
                return {torch.bfloat16: bf16, torch.float32: fp32}.get(dtype)
        return None
    return _measured_peak(device, dtype)


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
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
