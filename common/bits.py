"""The bit widths that weights can be quantized to, for the trainer's quantizers and for the scaling laws."""

BITS = (1.0, 1.58, 2.0, 3.0, 4.0, 6.0, 8.0)
"""1.58 = log2(3): ternary weights."""
