"""What the fork server imports once, so that a process forked from it starts at once. Nothing here may start a thread.

It also leaves out what costs time in every run and what no test of a forked process looks at: the picture of the loss curve,
the measuring of the CPU's peak, and waiting for the disk (a test kills processes, not the machine). The real command, which
tests start too, has them all.
"""

import os
from unittest import mock

import matplotlib.pyplot  # noqa: F401
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
import torch.profiler  # noqa: F401

import parallel.plan.hardware
import train.__main__
import train.build.dry_run
import train.export
import train.generate
import train.loop.recorder
import train.loop.trainer
from train.config import load_config

mock.patch.object(train.loop.recorder, "draw_loss").start()
mock.patch.object(parallel.plan.hardware, "_measured_peak", return_value=1e10).start()
mock.patch.object(os, "fsync").start()
load_config()  # what Hydra remembers of its grammar and of the options
