"""A pretend CUDA device for a CPU build of torch: a device test where there is no device.

    with pretend_cuda.device() as gpu:      # torch.cuda.is_available() is true inside
        x = torch.zeros(3, device="cuda")   # x.device is cuda:0; its numbers are in host memory
        x + torch.zeros(3)                  # RuntimeError: ... two devices, cuda:0 and cpu
        assert gpu.waits.total() == 0       # nothing has waited for the device yet

Numbers are those of the CPU's kernels. What is added is what only CUDA would say:

    tensors           where tensors are: mixing of devices, numpy, transfers, what waits
    contracts         dtypes, layouts and sizes that CUDA kernels refuse and the CPU's take
    attention         which kernel of scaled dot product attention torch would take
    nondeterministic  operations of which torch has no deterministic kernel
    streams           order of the work of several streams: races, overlap
    graphs            recordings of operations, replayed on the same memory

Every rule names its source. The test is as good as these tables: a kernel that is slow or wrong on
a real device is not seen here, and neither are Triton kernels, which are never launched.
"""

from pretend_cuda.device import device
from pretend_cuda.record import CUDA, Device
from pretend_cuda.tensors import CudaTensor

__all__ = ["CUDA", "CudaTensor", "Device", "device"]
