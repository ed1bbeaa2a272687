"""Whatever plans ask for, labels are nnU-Net's (`tests.medseg.nnunet_cases`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.bundle.load import load_bundle
from medseg.dicom.series import StackSource
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.job.plan import plan_nifti
from tests.medseg.nnunet_cases import CASES, LABELS, folder_of, image


@pytest.fixture(scope="module")
def expected() -> Mapping[str, NDArray[np.uint8]]:
    return dict(np.load(LABELS))


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_nnunet(name: str, expected: Mapping[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    bundle = load_bundle(folder_of(CASES[name], tmp_path))
    stack = plan_nifti(image(tmp_path, **CASES[name].image), [bundle], explicit=True).jobs[0].stack
    spool = LabelSpool()
    segment(StackSource(stack), bundle, spool)
    found = np.stack(list(spool)).transpose()
    assert stack.stored is not None
    found = found[:, :, ::-1] if stack.stored.turned else found  # the file's own order
    assert len(np.unique(expected[name])) > 1
    assert np.mean(found == expected[name]) >= 0.999  # another processor may round a score the other way
