"""Named regions of a trace."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function


def region(name: str) -> AbstractContextManager[object]:
    """A named region in the trace of a running profiler.

    Without one it does nothing, where torch's own would import the compiler, a second of a start.
    """
    return record_function(name) if torch._C._autograd._profiler_enabled() else nullcontext()
