"""Whatever plans ask for, labels are nnU-Net's (`tests.medseg.nnunet_cases`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.bundle.load import load_bundle
from medseg.dicom.series import StackSource
from medseg.inference.engines import engine
from medseg.inference.engines.device import CPU
from medseg.inference.nnunet import back, case
from medseg.inference.nnunet.matrices import DeviceZoom
from medseg.inference.nnunet.windows import Placing
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.job.plan import plan_nifti
from tests.medseg.nnunet_cases import CASES, LABELS, folder_of, image


@pytest.fixture(scope="module")
def expected() -> Mapping[str, NDArray[np.uint8]]:
    return dict(np.load(LABELS))


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_nnunet(name: str, expected: Mapping[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    check(name, expected, tmp_path)


@pytest.mark.parametrize("name", ["separate z", "together", "ct", "slices, mirrored", "regions", "average that passes"])
def test_so_they_are_as_a_gpu_makes_them(
    name: str, expected: Mapping[str, NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images by matrices, windows and their mirror images in batches, all heads brought to all voxels."""
    planes, eager = back.label_planes, engine.Case
    monkeypatch.setattr(case, "_zoom", lambda _: DeviceZoom(CPU))
    monkeypatch.setattr(case, "label_planes", lambda *given, all_heads: planes(*given, all_heads=True))
    monkeypatch.setattr(case, "Placing", lambda _, *given: Placing(lambda: 5, *given))
    mirrored = 3 if "mirrored" in name else 1
    monkeypatch.setattr(engine, "Case", lambda *given, plain: eager(*given[:6], mirrored, plain=plain))
    check(name, expected, tmp_path)


def check(name: str, expected: Mapping[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    bundle = load_bundle(folder_of(CASES[name], tmp_path))
    stack = plan_nifti(image(tmp_path, **CASES[name].image), [bundle], explicit=True).jobs[0].stack
    spool = LabelSpool()
    segment(StackSource(stack), bundle, spool)
    found = np.stack(list(spool)).transpose()
    assert stack.stored is not None
    found = found[:, :, ::-1] if stack.stored.turned else found  # the file's own order
    assert len(np.unique(expected[name])) > 1
    assert np.mean(found == expected[name]) >= 0.999  # another processor may round a score the other way
