"""The one attention kernel that training has to do without."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave attention to PyTorch's other kernels inside.

    PyTorch 2.11 and later prefer cuDNN's on Hopper GPUs and newer. Its backward pass makes the gradient of a query NaN
    where a mask is given, the length is 64 more than a multiple of 128, and all that the query sees is masked, as
    before padding on the left, or scored far below 0 (pytorch#196678, trl#7181). On other devices nothing changes.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
