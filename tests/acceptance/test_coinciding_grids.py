"""Labels agree with MONAI's own where planes of the source and of the model's grid coincide on some axes.

A voxel that is left in place keeps its value, zero included; MONAI's coordinates miss it by a rounding error, so that a
zero beside tissue is 1e-14 there, and no longer blank to `NormalizeIntensityd(nonzero=True)`.
`python -m tests.acceptance.test_coinciding_grids` prints the figures as a table.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medseg.bundle.bundle import Bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import Normalize, Orient, Padding, Recipe, Resample, Step, Window
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_affine, volume_to_series, write_series
from medseg.dicom.series import Stack, StackSource
from medseg.dicom.sources import read_series
from medseg.inference.engines.device import CPU
from medseg.inference.grids.prepare import prepare
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference import phantoms
from tests.medseg.inference.phantoms import SOFTMAX, Arriving, Collected, as_instances, make_bundle, make_stack

SHAPE = (36, 44, 40)
MODEL_MM = 1.5
OTHERWISE_MM = (2.5, 0.9, 0.8)  # k, j, i, where an axis does not coincide
COINCIDING = list(product((True, False), repeat=3))
LEAST = 0.9999
WINDOW = Window((24, 24, 24), (0.5,) * 3, batch=4)
TORCH = Settings(engine="torch")
RESAMPLED: tuple[Step, ...] = (Orient("RAS"), Resample((MODEL_MM,) * 3))
NONZERO = Normalize(nonzero=True)
NETWORK = {
    "_target_": "SegResNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "init_filters": 8,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}


@dataclass(frozen=True)
class Agreement:
    """Shares of voxels, and of each label in MONAI's result."""

    labels: float
    blank: float
    counts: tuple[float, ...]


def ct_like(seed: int = 0) -> NDArray[np.float32]:
    """Whole HU about 40, so that some are 0; air around."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = gaussian_filter(noise, 3)
    array = np.rint(40 + 60 * smooth / smooth.std() + 20 * noise)
    array[~_ellipsoid()] = -1000
    return array.astype(np.float32)


def mr_like(seed: int = 0) -> NDArray[np.float32]:
    """Whole numbers above 0 in an ellipsoid, 0 around, and a hole in it."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = gaussian_filter(noise, 2)
    array = np.clip(np.rint(200 + 80 * smooth / smooth.std() + 10 * noise), 1, None)
    array[~_ellipsoid()] = 0
    array[14:19, 18:25, 17:22] = 0
    return array.astype(np.float32)


def _ellipsoid() -> NDArray[np.bool_]:
    middle = [(size - 1) / 2 for size in SHAPE]
    away = sum(((index - at) / (0.9 * at)) ** 2 for index, at in zip(np.indices(SHAPE), middle, strict=True))
    return np.asarray(away < 1)


IMAGES = {"CT": ct_like, "MR": mr_like}


def spacing_mm(coincide: tuple[bool, bool, bool]) -> tuple[float, float, float]:
    k, j, i = (MODEL_MM if same else other for same, other in zip(coincide, OTHERWISE_MM, strict=True))
    return k, j, i


def bundle_for(folder: Path, steps: tuple[Step, ...] = (*RESAMPLED, NONZERO)) -> Bundle:
    return make_bundle(folder, steps=steps, network=NETWORK, window=WINDOW)


def blank_by_monai(image: MetaTensor, steps: tuple[Step, ...] = RESAMPLED) -> NDArray[np.bool_]:
    """Which voxels MONAI's resampling leaves zero, on the model's grid in its own order of axes."""
    data = {"image": image}
    for step in steps:
        data = phantoms.monai_transform(step)(data)
    return np.asarray(data["image"].as_tensor()[0].numpy() == 0)


def blank_by_us(array: NDArray[np.float32], stack: Stack, steps: tuple[Step, ...] = RESAMPLED) -> NDArray[np.bool_]:
    asking = Normalize(0.0, 1.0, nonzero=True)  # keeps every value
    ours = prepare(torch.from_numpy(array)[None].clone(), stack.affine, Recipe((*steps, asking), WINDOW, SOFTMAX))
    return np.asarray(ours.frame.axes.to_model(ours.voxels)[0].numpy() == 0)


def agreement(array: NDArray[np.float32], stack: Stack, bundle: Bundle) -> Agreement:
    expected = phantoms.monai_labels(array, stack, bundle.recipe, load_network(bundle, CPU))[0]
    sink = Collected()
    segment(StackSource(stack), bundle, sink, settings=TORCH)
    shares = tuple(float((expected == label).mean()) for label in range(bundle.out_channels))
    same_blank = float((blank_by_us(array, stack) == blank_by_monai(phantoms.as_monai(array, stack))).mean())
    return Agreement(float((sink.labels == expected).mean()), same_blank, shares)


@pytest.mark.parametrize("coincide", COINCIDING, ids=str)
@pytest.mark.parametrize("image", IMAGES)
def test_zeros_are_monais_whichever_axes_coincide(image: str, coincide: tuple[bool, bool, bool]) -> None:
    array = IMAGES[image]()
    stack = make_stack(array, spacing_mm=spacing_mm(coincide), origin_mm=(-123.4, -77.7, 311.3))
    assert (blank_by_us(array, stack) == blank_by_monai(phantoms.as_monai(array, stack))).mean() >= LEAST


@pytest.mark.parametrize("coincide", COINCIDING, ids=str)
@pytest.mark.parametrize("image", ["MR", pytest.param("CT", marks=pytest.mark.slow)])
def test_labels_are_monais_whichever_axes_coincide(
    image: str, coincide: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    array = IMAGES[image]()
    result = agreement(array, make_stack(array, spacing_mm=spacing_mm(coincide)), bundle_for(tmp_path))
    assert min(result.counts) > 0.02, "labels of one kind would prove nothing"
    assert result.labels >= LEAST


@pytest.mark.parametrize("backwards", [False, True], ids=["numbered upwards", "numbered downwards"])
@pytest.mark.parametrize("orientation", ["axial", "sagittal"])
def test_zeros_of_dicom_files_are_those_of_monais_reader(orientation: str, backwards: bool, tmp_path: Path) -> None:
    array = mr_like()
    affine = make_affine(orientation, spacing_mm((True, False, True)), SHAPE, centre_mm=(-23.43, 31.7, 311.37))
    datasets = volume_to_series(array, affine, "MR", "phantom")
    for dataset in datasets:
        dataset.InstanceNumber = len(datasets) - dataset.InstanceNumber if backwards else dataset.InstanceNumber
    write_series(datasets, tmp_path)
    image = LoadImage(reader="PydicomReader", ensure_channel_first=True, image_only=True)(str(tmp_path)).float()
    (series,) = read_series(tmp_path)
    stack = classify(series, assume_frame_of_reference=True).stacks[0]
    volume = np.stack([one.read() for one in stack.slices])
    assert (blank_by_us(volume, stack) == blank_by_monai(image)).mean() >= LEAST


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPL", "AIR"])
@pytest.mark.parametrize(
    "how",
    [{}, {"align_corners": True}, {"padding": Padding.ZEROS}, {"scale_extent": True, "align_corners": True}],
    ids=str,
)
@pytest.mark.parametrize("aslant", [False, True], ids=["along the patient", "aslant"])
def test_zeros_are_monais_for_every_way_of_resampling(axcodes: str, how: dict[str, Any], aslant: bool) -> None:
    array = mr_like()
    turn = Rotation.from_euler("xyz", [0.1, -0.2, 0.15]).as_matrix() if aslant else np.eye(3)
    stack = make_stack(array, spacing_mm=spacing_mm((False, True, True)), axes=phantoms.LPS[[2, 1, 0]] @ turn)
    steps = (Orient(axcodes), Resample((MODEL_MM,) * 3, **how))
    ours, monais = blank_by_us(array, stack, steps), blank_by_monai(phantoms.as_monai(array, stack), steps)
    assert (ours == monais).mean() >= LEAST


@pytest.mark.parametrize("backwards", [False, True], ids=["from the first", "from the last"])
@pytest.mark.parametrize("known", [True, False], ids=["number known", "number unknown"])
def test_slices_that_come_give_the_bits_of_the_whole(backwards: bool, known: bool, tmp_path: Path) -> None:
    array = mr_like()
    stack = as_instances(make_stack(array, spacing_mm=spacing_mm((True, False, True))))
    for steps in ((*RESAMPLED, NONZERO), (*RESAMPLED, Normalize(100.0, 50.0, nonzero=True))):
        bundle = bundle_for(tmp_path, steps)
        whole, streamed = Collected(), Collected()
        segment(StackSource(stack), bundle, whole, settings=TORCH)
        order = list(range(len(stack.slices)))
        source = Arriving(stack, order[::-1] if backwards else order, len(order) if known else None)
        result = segment(source, bundle, streamed, settings=TORCH)
        assert not result.streamed
        assert result.streamed_reason
        assert np.array_equal(whole.labels, streamed.labels)
        expected = phantoms.monai_labels(array, stack, bundle.recipe, load_network(bundle, CPU))[0]
        assert (whole.labels == expected).mean() >= LEAST


def main() -> None:
    print("| image | k, j, i coincide | labels equal | zeros equal |\n|---|---|---|---|")
    for image, coincide in product(IMAGES, COINCIDING):
        array = IMAGES[image]()
        with tempfile.TemporaryDirectory() as folder:
            stack = make_stack(array, spacing_mm=spacing_mm(coincide))
            result = agreement(array, stack, bundle_for(Path(folder)))
        print(f"| {image} | {coincide} | {100 * result.labels:.4f} % | {100 * result.blank:.4f} % |", flush=True)


if __name__ == "__main__":
    main()
