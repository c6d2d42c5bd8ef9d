"""What has to be settled before the first test module is imported.

Without a GPU, Triton kernels run in its interpreter, on the CPU: Triton reads the variable when it
is imported, which other packages do as they please. Where tests run in several processes, these
share the cores: threads of one would wait for those of another. Processes that tests start inherit
both.
"""

import locale
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported

import faster_checks
import pytest
import torch
from hypothesis import HealthCheck, settings

faster_checks.install()
# Of tests/test_fuzz.py: the same few examples each time, or many new ones, which are kept:
#     python -m pytest tests/test_fuzz.py --hypothesis-profile long
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
settings.register_profile(
    "few",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=SLOW,
)
settings.register_profile("long", max_examples=20_000, deadline=None, suppress_health_check=SLOW)
settings.load_profile("few")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def same_locale():
    """SimpleITK's writers leave the process in the C locale, which would upset later tests."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)
