"""What a configuration comes to: its schedule, its low-precision phase, its context method. Imports no torch."""
