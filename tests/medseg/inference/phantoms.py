"""Stacks, bundles and sinks for the tests of inference, all in memory; and MONAI's own path to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureTyped,
    Invertd,
    KeepLargestConnectedComponentd,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from numpy.typing import NDArray
from pydicom import Dataset
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.bundle.bundle import Bundle, Code, Expects, Postprocess, Segment
from medseg.bundle.network import build_network
from medseg.bundle.recipe import (
    Activation,
    Finish,
    Normalize,
    Order,
    Orient,
    Recipe,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    Step,
    Window,
)
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Instance, Plane, Slice
from medseg.dicom.nifti import LPS_TO_RAS
from medseg.dicom.series import Series, Stack
from medseg.inference.labels import LabelPlane

TISSUE = Code("SCT", "85756007", "Tissue")
LPS = np.eye(3)
STEPS: tuple[Step, ...] = (Orient("RAS"), ScaleRange(-100.0, 300.0, 0.0, 1.0, clip=True))
WINDOW = Window((16, 16, 16), (0.5, 0.5, 0.5), batch=4)
SOFTMAX = Finish(Activation.SOFTMAX, None, Order.PROBABILITIES_FIRST, nearest=False)
SOFTMAX_LABELS = Finish(Activation.SOFTMAX, None, Order.LABELS_FIRST, nearest=True)
SIGMOID = Finish(Activation.SIGMOID, 0.5, Order.PROBABILITIES_FIRST, nearest=False)
SIGMOID_LABELS = Finish(Activation.SIGMOID, 0.5, Order.LABELS_FIRST, nearest=True)
ANYTHING = Expects()
AS_IT_IS = Postprocess()


def make_stack(
    array: NDArray[np.float32],
    *,
    spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
    axes: NDArray[np.float64] = LPS[[2, 1, 0]],
    origin_mm: tuple[float, float, float] = (-20.0, 30.0, 10.0),
    coordinates: NDArray[np.float64] | None = None,
    tilt_mm: float = 0.0,
    modality: str = "CT",
) -> Stack:
    """A stack of the planes of `array` (k, j, i).

    axes: rows are the LPS directions of k, j, i. tilt_mm: how far each slice is pushed along j, as a gantry does.
    """
    affine = np.eye(4)
    affine[:3, :3] = (axes * np.array(spacing_mm)[:, None]).T
    affine[:3, 0] += axes[1] * tilt_mm
    affine[:3, 3] = origin_mm
    places = np.arange(len(array), dtype=float) if coordinates is None else coordinates
    rows, columns = array.shape[1:]

    def one(k: int) -> Slice:
        position = affine[:3, 3] + affine[:3, 0] * places[k]
        plane = Plane(position, axes[2], axes[1], (spacing_mm[1], spacing_mm[2]), rows, columns)
        return Slice(plane, lambda: array[k])

    slices = tuple(one(k) for k in range(len(array)))
    series = Series("1.2.3", "1.2.3.4", modality, 1, "phantom", "HEAD", ())
    tilt = float(np.degrees(np.arctan2(tilt_mm, spacing_mm[0])))
    return Stack(series, slices, places, affine, np.full(len(array), spacing_mm[0]), "1.2.3.5", tilt_deg=tilt)


def as_instances(stack: Stack) -> Stack:
    """The stack as geometry finds it when its slices are DICOM instances, all of one frame of reference."""

    def instance(k: int) -> Instance:
        header = Dataset()
        header.SOPInstanceUID, header.FrameOfReferenceUID = f"1.2.3.9.{k + 1}", "1.2.3.5"
        return Instance(header, BytesIO, f"slice {k}")

    slices = [replace(one, instance=instance(k)) for k, one in enumerate(stack.slices)]
    (found,) = classify(stack.series, slices).stacks
    return found


@dataclass
class Arriving:
    """A source of a stack's slices as they come. None in `order`: nothing at the moment. asked: how often, so far."""

    stack: Stack
    order: Sequence[int | None]
    expected: int | None = None
    asked: int = 0

    @property
    def series(self) -> Series:
        return self.stack.series

    def __iter__(self) -> Iterator[Slice | None]:
        for k in self.order:
            self.asked += 1
            yield None if k is None else self.stack.slices[k]


def make_bundle(
    folder: Path,
    *,
    steps: tuple[Step, ...] = STEPS,
    window: Window = WINDOW,
    finish: Finish = SOFTMAX,
    network: Mapping[str, Any] | None = None,
    channels: int = 3,
    postprocess: Postprocess = AS_IT_IS,
    expects: Expects = ANYTHING,
    fallback: str | None = None,
    precisions: tuple[str, ...] = ("fp32",),
    seed: int = 0,
) -> Bundle:
    """A bundle whose network has random weights: by default a small convolution, which is smooth."""
    dims = len(window.roi)
    network = network or {
        "_target_": f"torch.nn.Conv{dims}d",
        "in_channels": window.slices,
        "out_channels": channels,
        "kernel_size": 5,
        "padding": 2,
    }
    exclusive = finish.threshold is None
    bundle = Bundle(
        name="phantom",
        version="1",
        path=folder,
        digest=f"{seed}-{folder}-{network}",
        description="",
        licence="",
        network=network,
        weights=folder / "model.safetensors",
        in_channels=window.slices,
        out_channels=channels,
        recipe=Recipe(steps, window, finish, fallback),
        expects=expects,
        segments=tuple(make_segment(number) for number in range(1, channels + (0 if exclusive else 1))),
        postprocess=postprocess,
        precisions=precisions,
        default=False,
        research_only=True,
    )
    torch.manual_seed(seed)
    built = build_network(bundle)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.ndim > 1 else 0.1)
    save_file(built.state_dict(), bundle.weights)
    return bundle


def make_segment(number: int, volume_ml: tuple[float, float] | None = None) -> Segment:
    return Segment(number, f"Segment {number}", TISSUE, TISSUE, None, None, (255, 0, 0), volume_ml)


@dataclass
class Collected:
    """A sink that keeps what it is given."""

    planes: list[LabelPlane] = field(default_factory=list)
    exclusive: bool | None = None
    ended: bool = False

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        self.exclusive = exclusive

    def plane(self, k: int, labels: LabelPlane) -> None:
        assert k == len(self.planes)
        self.planes.append(labels.copy())

    def end(self) -> None:
        self.ended = True

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(k, j, i), or (k, segments, j, i) for overlapping segments."""
        return np.stack(self.planes)


def blobs(shape: tuple[int, int, int], seed: int = 0, smooth: float = 2.0) -> NDArray[np.float32]:
    """A smooth random image of about -200 to 400, as (k, j, i)."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return (100 + 150 * noise / noise.std()).astype(np.float32)


class Allocations(TorchDispatchMode):
    """Numbers of elements of every tensor that gets memory of its own while this is on."""

    def __init__(self) -> None:
        super().__init__()
        self.numel: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
            if out.untyped_storage().data_ptr() not in given:
                self.numel.append(out.numel())
        return out


# MONAI's own path


def as_monai(array: NDArray[np.float32], stack: Stack) -> MetaTensor:
    """The volume as MONAI loads DICOM: (1, i, j, k) with an affine to RAS."""
    affine = LPS_TO_RAS @ stack.affine[:, [2, 1, 0, 3]]
    return MetaTensor(torch.from_numpy(array).permute(2, 1, 0)[None].clone(), affine=torch.from_numpy(affine))


def monai_transform(step: Step) -> Any:
    match step:
        case Orient():
            return Orientationd("image", axcodes=step.axcodes, labels=None)
        case Resample():
            return Spacingd(
                "image",
                pixdim=step.spacing_mm,
                mode=str(step.interpolation),
                padding_mode=str(step.padding),
                align_corners=step.align_corners,
                scale_extent=step.scale_extent,
            )
        case ScaleRange():
            return ScaleIntensityRanged("image", step.a_min, step.a_max, step.b_min, step.b_max, step.clip)
        case ScalePercentiles():
            return ScaleIntensityRangePercentilesd(
                "image", step.lower, step.upper, step.b_min, step.b_max, step.clip, step.relative
            )
        case ScaleMinMax():
            return ScaleIntensityd("image", step.minv, step.maxv, step.factor)
        case Normalize():
            return NormalizeIntensityd("image", step.subtrahend, step.divisor, step.nonzero)


def monai_inferer(window: Window) -> Any:
    settings = {
        "roi_size": window.roi,
        "sw_batch_size": window.batch,
        "overlap": window.overlap if len(window.roi) == 3 else window.overlap[0],
        "mode": str(window.blend),
        "sigma_scale": window.sigma_scale,
        "padding_mode": window.padding_mode,
        "cval": window.cval,
    }
    return SlidingWindowInferer(**settings) if len(window.roi) == 3 else SliceInferer(window.slice_axis, **settings)


def monai_labels(
    array: NDArray[np.float32], stack: Stack, recipe: Recipe, network: nn.Module, device: str = "cpu"
) -> NDArray[np.uint8]:
    """Labels by MONAI's transforms, inferer, Invertd and AsDiscrete: (C, k, j, i); C = 1 for argmax.

    device: the network's, where scores stay until they are labels.
    """
    return labels_of_image(as_monai(array, stack), recipe, network, device)


def labels_of_image(image: MetaTensor, recipe: Recipe, network: nn.Module, device: str = "cpu") -> NDArray[np.uint8]:
    """See `monai_labels`; of an image that MONAI has read, whose slices are k in its order."""
    finish = recipe.finish
    before = Compose([EnsureTyped("image"), *(monai_transform(step) for step in recipe.steps)])
    data = before({"image": image})
    with torch.no_grad():
        data["pred"] = monai_inferer(recipe.window)(data["image"][None].to(device), network)[0]
    activate = Activationsd(
        "pred", softmax=finish.activation is Activation.SOFTMAX, sigmoid=finish.activation is Activation.SIGMOID
    )
    invert = Invertd("pred", transform=before, orig_keys="image", nearest_interp=finish.nearest)
    discrete = AsDiscreted("pred", argmax=finish.threshold is None, threshold=finish.threshold)
    largest = KeepLargestConnectedComponentd("pred", applied_labels=finish.keep_largest or ())
    if finish.order is Order.PROBABILITIES_FIRST:
        after = Compose([activate, invert, discrete])
    else:
        after = Compose([activate, discrete, largest, invert])
    return after(data)["pred"].as_tensor().permute(0, 3, 2, 1).cpu().numpy().astype(np.uint8)
