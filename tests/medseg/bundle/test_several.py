"""Whether a bundle is of several series is known without its weights, and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.bundle.load import load_bundle
from medseg.bundle.several import needs_several
from tests.medseg import nnunet_folders
from tests.medseg.bundle import zoo


def _within(trained: Path) -> Path:
    return trained.parent


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(zoo.spleen_like, id="one"),
        pytest.param(lambda folder: zoo.brats_like(folder, own=True), id="by names"),
        pytest.param(
            lambda folder: zoo.brats_like(folder, [{"name": one, "modality": "MR"} for one in "abc"]), id="said"
        ),
        pytest.param(nnunet_folders.write, id="one, of nnU-Net"),
        pytest.param(lambda folder: nnunet_folders.write(folder, channels=("T1", "T2")), id="two, of nnU-Net"),
        pytest.param(
            lambda folder: _within(nnunet_folders.write(folder / "a__b__c", channels=("T1", "T2"))), id="in a dataset"
        ),
        pytest.param(
            lambda folder: nnunet_folders.copied(nnunet_folders.write(folder.parent / "t"), folder, step=0.5),
            id="in a bundle",
        ),
    ],
)
def test_it_is_as_the_loaded_bundle_says(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    assert needs_several(folder) is (load_bundle(folder).channels is not None)


def test_torch_is_not_loaded_for_it(tmp_path: Path) -> None:
    folder = zoo.brats_like(tmp_path / "bundle")
    program = (
        "import sys; from pathlib import Path; from medseg.bundle.catalog import find_folder; "
        "from medseg.bundle.several import needs_several; import gateway.serve.director; "
        f"assert needs_several(find_folder({str(folder)!r})); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
