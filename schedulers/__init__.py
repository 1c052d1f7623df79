"""Learning-rate schedules: pure functions of tokens. Standard library only."""
