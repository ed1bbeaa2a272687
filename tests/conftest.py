"""What all tests share: where the data lies, and which peers are here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent

# How long a job takes on a busy machine, or what was raced on it before, does not decide what tests compute with.
os.environ["MEDSEG_ENGINE"] = "torch"
# A worker for each core, a thread for each worker and each process that it starts: threads that wait for each other on
# small tensors cost five times what they compute.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# No test fails by the clock: a machine may be busy, and Python may collect its garbage at any moment.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MEDSEG_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real images are not here: set MEDSEG_SHARED_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test that draws random numbers draws the same ones in every run: none fails one time in five hundred."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each call of the network was given."""
    from medseg.inference.engines.engine import Engine  # torch is not loaded for tests that do without it

    seen: list[int] = []
    forward = Engine._forward

    def counted(self: Engine, given: Tensor) -> Tensor:
        seen.append(len(given))
        return forward(self, given)

    monkeypatch.setattr(Engine, "_forward", counted)
    return seen
