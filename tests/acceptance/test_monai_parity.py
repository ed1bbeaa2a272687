"""Labels agree with MONAI's own path on real images.

MONAI's side is MONAI alone: LoadImage (PydicomReader), the bundle's configuration through ConfigParser, its
transforms, its inferer, Invertd and AsDiscreted. Ours is `segment` on what we read ourselves.
`python -m tests.acceptance.test_monai_parity DATA` prints the figures as a table.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import nilearn
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import ndimage

from medseg.bundle.bundle import Postprocess
from medseg.bundle.load import load_bundle
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import Stack, StackSource
from medseg.dicom.sources import read_series
from medseg.inference.segment import segment
from tests.medseg.bundle import zoo
from tests.medseg.inference.phantoms import Collected

CT, T1 = "IRCADb CT 512x512x119", "sagittal T1 256x256x35"
WINDOW = (96, 96, 96)


@dataclass(frozen=True)
class Case:
    """A bundle on an image. smooth: its labels do not flicker from voxel to voxel."""

    image: str
    network: str
    smooth: bool

    @property
    def least(self) -> float:
        """Share of voxels that must agree."""
        return 0.9999 if self.smooth else 0.999

    def __str__(self) -> str:
        return f"{self.network}, {'smooth' if self.smooth else 'random'} weights, on {self.image}"


CASES = [
    Case(image, network, smooth) for image in (T1, CT) for network in ("UNet", "SegResNet") for smooth in (False, True)
]


@dataclass(frozen=True)
class Agreement:
    order: str
    voxels: float
    least_dice: float
    labels: tuple[int, ...]  # voxels of each value
    monai_s: float
    medseg_s: float


def series_folder(image: str, data: Path, scratch: Path) -> Path:
    """A folder with the files of one series, which MONAI can read."""
    if image == T1:
        return data / "dicom/mr_siemens_hfs_t1_sag"
    folder = scratch / "ircadb"
    if not folder.exists():
        with zipfile.ZipFile(data / "dicom/ct_ircadb01_17/PATIENT_DICOM.zip") as archive:
            archive.extractall(folder)
    return next(path.parent for path in sorted(folder.rglob("*")) if path.is_file())


def make_bundle(case: Case, folder: Path, image: MetaTensor) -> Path:
    """A zoo-style bundle whose values and window suit the image, and whose labels are evenly shared out."""
    make = zoo.spleen_like if case.network == "UNet" else zoo.segresnet_like
    make(folder, smooth=case.smooth)
    values = {"a_min": 0, "a_max": 600} if case.image == T1 else {"a_min": -57, "a_max": 164}

    def change(config: dict[str, Any]) -> None:
        next(s for s in config["preprocessing"]["transforms"] if "Range" in s["_target_"]).update(values)
        config["inferer"]["roi_size"] = list(WINDOW)

    return balance(zoo.rewrite(folder, change), image)


def balance(bundle: Path, image: MetaTensor) -> Path:
    """Shift the last bias so that each channel wins about as often: labels of one kind only would prove little."""
    parser = parsed(bundle)
    network, weights = parser.get_parsed_content("network_def").eval(), read_weights(bundle)
    network.load_state_dict(weights)
    whole = parser.get_parsed_content("preprocessing")({"image": image})["image"].as_tensor()
    begin = [max((size - window) // 2, 0) for size, window in zip(whole.shape[1:], WINDOW, strict=True)]
    middle = whole[:, *(slice(at, at + window // 4 * 4) for at, window in zip(begin, WINDOW, strict=True))]
    middle = middle[:, *(slice(0, size // 4 * 4) for size in middle.shape[1:])]
    with torch.no_grad():
        scores = network(middle[None])[0]
    overlapping = any(step.get("sigmoid") for step in parser["postprocessing"]["transforms"])
    against = scores if overlapping else scores - scores[:1]
    last = [name for name, tensor in weights.items() if name.endswith("bias") and len(tensor) == len(scores)][-1]
    weights[last] = weights[last] - against.flatten(1).median(dim=1).values
    write_weights(bundle, weights)
    return bundle


def parsed(bundle: Path) -> ConfigParser:
    """The bundle as MONAI reads it, without the steps that read and write files."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    skipped = ("LoadImaged", "EnsureChannelFirstd", "SaveImaged")
    for key in ("preprocessing", "postprocessing"):
        parser[f"{key}::transforms"] = [s for s in parser[f"{key}::transforms"] if s["_target_"] not in skipped]
    parser["device"] = "$torch.device('cpu')"
    return parser


def read_weights(bundle: Path) -> dict[str, torch.Tensor]:
    path = bundle / "models/model.pt"
    weights: dict[str, torch.Tensor]
    weights = torch.load(path, weights_only=True) if path.exists() else load_file(path.with_suffix(".safetensors"))
    return weights


def write_weights(bundle: Path, weights: dict[str, torch.Tensor]) -> None:
    path = bundle / "models/model.pt"
    if path.exists():
        torch.save(weights, path)
    else:
        save_file(weights, path.with_suffix(".safetensors"))


def labels_first(config: dict[str, Any]) -> None:
    """Discretise before the inversion, which is then by nearest neighbour."""
    activate, invert, discrete, *rest = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [activate, discrete, {**invert, "nearest_interp": True}, *rest]


ORDERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "probabilities inverted": lambda config: None,
    "labels inverted": labels_first,
}


def monai_labels(bundle: Path, image: MetaTensor) -> NDArray[np.uint8]:
    """(C, k, j, i) by MONAI, which reads the bundle itself."""
    parser = parsed(bundle)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(read_weights(bundle))
    data = parser.get_parsed_content("preprocessing")({"image": image})
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    labels = parser.get_parsed_content("postprocessing")(data)["pred"]
    return labels.as_tensor().permute(0, 3, 2, 1).numpy().astype(np.uint8)


def dice(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    both = int(found.sum()) + int(expected.sum())
    return 1.0 if both == 0 else 2.0 * int((found & expected).sum()) / both


def compare(case: Case, data: Path, scratch: Path) -> Iterator[Agreement]:
    folder = series_folder(case.image, data, scratch)
    begin = time.perf_counter()
    image = LoadImage(reader="PydicomReader", ensure_channel_first=True, image_only=True)(str(folder)).float()
    reading_s = time.perf_counter() - begin
    (series,) = read_series(folder)
    stack = classify(series, assume_frame_of_reference=True).stacks[0]
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        yield from both_orders(make_bundle(case, Path(place) / "bundle", image.clone()), image, stack, reading_s)


def both_orders(bundle: Path, image: MetaTensor, stack: Stack, reading_s: float = 0.0) -> Iterator[Agreement]:
    """MONAI's labels and ours; the bundle's own clean-up is left out, since MONAI knows nothing of it."""
    for order, change in ORDERS.items():
        zoo.rewrite(bundle, change)
        begin = time.perf_counter()
        expected = monai_labels(bundle, image.clone())
        monai_s = reading_s + time.perf_counter() - begin
        sink = Collected()
        begin = time.perf_counter()
        segment(StackSource(stack), replace(load_bundle(bundle), postprocess=Postprocess()), sink)
        medseg_s = time.perf_counter() - begin
        found = sink.labels[None] if sink.exclusive else sink.labels.swapaxes(0, 1)
        expected = as_ours(expected, image, stack)
        least = min(
            dice(f == value, e == value) for f, e in zip(found, expected, strict=True) for value in np.unique(e)
        )
        counts = tuple(int(n) for n in np.bincount(expected.ravel()))
        yield Agreement(order, float((found == expected).mean()), least, counts, monai_s, medseg_s)


def as_ours(labels: NDArray[np.uint8], image: MetaTensor, stack: Stack) -> NDArray[np.uint8]:
    """MONAI may have stacked the slices the other way round: (C, k, j, i) in our order, by the affines."""
    ours = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine[:, [2, 1, 0, 3]]
    theirs = image.affine.numpy()
    if np.allclose(ours, theirs, atol=1e-3):
        return labels
    turned = np.linalg.solve(theirs, ours)
    assert np.allclose(np.abs(turned[:3, :3]), np.eye(3), atol=1e-3), turned
    flips = [3 - axis for axis in range(3) if turned[axis, axis] < 0]
    return np.flip(labels, flips)


QUICK = Case(T1, "UNet", smooth=True)
MARKED = [pytest.param(case, marks=() if case == QUICK else pytest.mark.slow, id=str(case)) for case in CASES]


@pytest.mark.parametrize("case", MARKED)
def test_labels_agree_with_monais_own_path(
    case: Case, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for agreement in compare(case, shared_data, tmp_path_factory.getbasetemp()):
        assert agreement.voxels >= case.least, agreement
        if case.smooth:
            assert agreement.least_dice >= 0.999, agreement


def hippocampus_region(folder: Path) -> Path:
    """The right hippocampus of MNI152 (36 x 52 x 36 mm about x 28, y -20, z -14), on a grid that must be resampled."""
    packed = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    template = nibabel.load(packed)
    spacing = np.array([1.25, 0.9, 1.1])
    shape = np.rint(np.array([36, 52, 36]) / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array([28, -20, -14]) - spacing * (shape - 1) / 2
    into = np.linalg.solve(template.affine, affine)
    region = ndimage.affine_transform(template.get_fdata(), into[:3, :3], into[:3, 3], tuple(shape), order=1)
    path = folder / "region.nii.gz"
    nibabel.save(nibabel.Nifti1Image(region.astype(np.float32), affine), path)
    return path


def trained(scratch: Path) -> Iterator[Agreement]:
    """The shipped hippocampus bundle on the region it was made for."""
    path = hippocampus_region(scratch)
    bundle = scratch / "hippocampus_t1_unet3d"
    shutil.copytree(Path(__file__).parents[2] / "bundles" / bundle.name, bundle)
    image = LoadImage(reader="NibabelReader", ensure_channel_first=True, image_only=True)(str(path)).float()
    yield from both_orders(bundle, image, read_nifti(path))


@pytest.fixture
def every_core() -> Iterator[None]:
    """As many threads as a user has, where other tests make do with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("every_core")
def test_labels_of_a_trained_network_agree(tmp_path: Path) -> None:
    for agreement in trained(tmp_path):
        assert len(agreement.labels) == 3, agreement
        assert agreement.voxels >= 0.9999, agreement
        assert agreement.least_dice >= 0.999, agreement


def main(data: Path) -> None:
    print("| image | network | weights | what is inverted | voxels equal | least Dice | MONAI s | medseg s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            for found in compare(case, data, Path(scratch)):
                print(
                    f"| {case.image} | {case.network} | {'smooth' if case.smooth else 'random'} | {found.order} "
                    f"| {100 * found.voxels:.4f} % | {found.least_dice:.5f} "
                    f"| {found.monai_s:.1f} | {found.medseg_s:.1f} |",
                    flush=True,
                )
        for found in trained(Path(scratch)):
            print(
                f"| MNI152 region | hippocampus_t1_unet3d | trained | {found.order} | {100 * found.voxels:.4f} % "
                f"| {found.least_dice:.5f} | {found.monai_s:.1f} | {found.medseg_s:.1f} |"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
