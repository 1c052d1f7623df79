"""The widths that weights are quantized to. The trainer has quantizers for them, the scaling laws plan with them."""

BITS = (1.0, 1.58, 2.0, 3.0, 4.0, 6.0, 8.0)
"""1.58 = log2(3): ternary weights."""
