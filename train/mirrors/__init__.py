"""Copies of a run's record for other tools. The record is the truth; a mirror follows it, and never holds a run up or stops it.

`start` starts a process for each mirror (`process`), which follows `metrics.jsonl` (`follow`) and hands lines to `wandb` or
`tensorboard`. Imports no torch.
"""
