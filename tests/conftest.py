"""One hypothesis profile for all tests: the same examples on every run, no deadlines on shared machines."""

import gc
import os

from hypothesis import settings

# The matrices of tests are small: further threads of BLAS would spend their time waiting. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection() -> None:
    """Thousands of tests are made and kept: looking for garbage among them would cost a tenth of the fast tests."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
