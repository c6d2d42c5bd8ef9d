"""Without a GPU, Triton kernels run in its interpreter, on the CPU.

Triton reads the variable when it is imported, which other packages do as they please: it is set
before the first test module is.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
