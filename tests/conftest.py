"""Without a GPU, Triton kernels run in its interpreter, on the CPU.

Triton reads the variable when it is imported, which other packages do as they please: it is set
before the first test module is.
"""

import locale
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def same_locale():
    """SimpleITK's writers leave the process in the C locale, which would upset later tests."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)
