"""The bit widths that weights can be quantized to, for the trainer's quantizers and for the scaling laws; and small floats."""

from dataclasses import dataclass

BITS = (1.0, 1.58, 2.0, 3.0, 4.0, 6.0, 8.0)
"""1.58 = log2(3): ternary weights."""


@dataclass(frozen=True)
class FloatFormat:
    """A binary float of a few bits, with a sign and subnormal numbers, without infinities."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def bits(self) -> int:
        """Bits of a number, its share of a scale not included."""
        return 1 + self.exponent_bits + self.mantissa_bits


FLOAT_FORMATS = {
    "e4m3": FloatFormat(4, 3, 7, 448.0),
    "e3m2": FloatFormat(3, 2, 3, 28.0),
    "e2m3": FloatFormat(2, 3, 1, 7.5),
    "e2m1": FloatFormat(2, 1, 1, 6.0),
}
"""The element formats of OCP Microscaling Formats (MX) 1.0, section 5.3, by their exponent and mantissa bits."""
