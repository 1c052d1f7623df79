"""What the fork server imports once, so that a console command in a fork of it starts at once."""

import matplotlib.pyplot  # noqa: F401
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401

import train.__main__
import train.generate
import train.trainer  # noqa: F401
