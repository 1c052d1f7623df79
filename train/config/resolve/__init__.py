"""Derived from a configuration: its schedule, low-precision phase, context method and architecture. Imports no torch."""
