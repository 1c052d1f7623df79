"""What the fork server imports once, so that a process forked from it starts at once. Nothing here may start a thread."""

import matplotlib.pyplot  # noqa: F401
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
import torch.profiler  # noqa: F401

import train.__main__
import train.build.dry_run
import train.export
import train.generate
import train.loop.trainer  # noqa: F401
