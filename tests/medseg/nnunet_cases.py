"""What plans may ask for, a case each: small folders of random weights and a small image; nnU-Net's labels beside.

The labels in `nnunet_cases.npz` are nnU-Net's own. Made anew, where it is installed (extra `nnunet`):

    python -m tests.medseg.nnunet_cases
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from tests.medseg import nnunet_folders as made

LABELS = Path(__file__).with_name("nnunet_cases.npz")
DATA, SCORES = "resampling_fn_data", "resampling_fn_probabilities"
SPLINE = made.SPLINE
TORCH = "resample_torch_fornnunet"
THICK = [3.0, 1.3, 1.2]
FLAT = [1.2, 1.3, 3.0]


@dataclass(frozen=True)
class Case:
    """plans: of the folder. folder, image: more arguments of `nnunet_folders.write` and of `image`.

    other: plans of a second model, with which its probabilities are averaged; of a cascade that is its first stage.
    """

    plans: Callable[[], dict[str, Any]]
    folder: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    other: Callable[[], dict[str, Any]] | None = None


def turned(plans: dict[str, Any], *forward: int) -> dict[str, Any]:
    backward = [forward.index(axis) for axis in range(3)]
    return plans | {"transpose_forward": list(forward), "transpose_backward": backward}


def read_by(reader: str, plans: dict[str, Any]) -> dict[str, Any]:
    return plans | {"image_reader_writer": reader}


def spaced(*mm: float, **changes: Any) -> Callable[[], dict[str, Any]]:
    """Plans of a spacing."""
    return lambda: made.plans(len(mm), spacing=list(mm), **changes)


def by_torch(separate: bool | None) -> dict[str, Any]:
    """Resampling by torch, as the keys of a configuration."""
    kwargs = {"is_seg": False, "force_separate_z": separate, "memefficient_seg_resampling": False}
    return {key: value for way in (DATA, SCORES) for key, value in ((way, TORCH), (f"{way}_kwargs", kwargs))}


def by_splines(data: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    return {f"{DATA}_kwargs": SPLINE | data, f"{SCORES}_kwargs": SPLINE | scores}


def built(**changes: Any) -> Callable[[], dict[str, Any]]:
    """Plans of another network of the plain kind."""

    def make() -> dict[str, Any]:
        plans = made.plans(spacing=THICK)
        plans["configurations"]["net"]["architecture"]["arch_kwargs"] |= changes
        return plans

    return make


def residual(dims: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        plans = made.plans(dims, spacing=THICK[-dims:])
        architecture = plans["configurations"]["net"]["architecture"]
        architecture["network_class_name"] = f"{made.UNET}.ResidualEncoderUNet"
        del architecture["arch_kwargs"]["n_conv_per_stage"]
        architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 2]
        return plans

    return make


def cascade() -> dict[str, Any]:
    """Plans of two stages."""
    plans = made.plans(spacing=[3.0, 1.3, 1.2])
    plans["configurations"]["low"] = {"inherits_from": "net", "spacing": [5.0, 2.1, 2.0], "previous_stage": None}
    plans["configurations"]["net"]["previous_stage"] = "low"
    return plans


def old_form() -> dict[str, Any]:
    """Plans as they were before nnU-Net 2.4.2."""
    plans = made.plans(spacing=THICK)
    net = plans["configurations"]["net"]
    del net["architecture"]
    net |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 3,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "num_pool_per_axis": [1, 1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    }
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    return plans


APART = {"force_separate_z": True}
THIN = {"zooms": (1.0, 1.1, 2.5)}
CASES: dict[str, Case] = {
    "separate z": Case(spaced(*THICK)),
    "together": Case(spaced(1.4, 1.3, 1.2), image={"zooms": (1.0, 1.1, 1.5)}),
    "ct": Case(spaced(*THICK, scheme="CTNormalization"), {"channels": ("CT",)}),
    "slices": Case(spaced(1.3, 0.8)),
    "slices, mirrored": Case(spaced(1.3, 0.8), {"mirrored": (0, 1)}),
    "slices, transposed": Case(lambda: turned(spaced(1.3, 2.8)(), 2, 0, 1)),
    "mirrored along two axes": Case(spaced(*THICK), {"mirrored": (0, 2)}),
    "transposed": Case(lambda: turned(spaced(1.5, 3.1, 1.2)(), 1, 0, 2)),
    "transposed, thick last": Case(lambda: turned(spaced(1.5, 1.1, 5.2)(), 2, 1, 0)),
    "labels with gaps": Case(spaced(*THICK), {"labels": {"background": 0, "a": 2, "b": 5, "ignore": 6}}),
    "regions": Case(
        spaced(*THICK),
        {"labels": {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": 3}, "regions_class_order": [1, 2, 3]},
    ),
    "torch": Case(spaced(*THICK, **by_torch(None))),
    "torch, together": Case(spaced(2.0, 1.3, 1.2, **by_torch(False))),
    "cubic scores": Case(spaced(2.0, 1.3, 1.2, **by_splines({}, {})), image=THIN),
    "nearest scores": Case(spaced(2.0, 1.3, 1.2, **by_splines({}, {"order": 0})), image=THIN),
    "splines along z": Case(spaced(4.0, 1.3, 1.2, **by_splines({"order_z": 3}, {"order": 1, "order_z": 1}))),
    "separate as told": Case(spaced(2.0, 1.3, 1.2, **by_splines(APART, APART | {"order": 1}))),
    "the same grid": Case(spaced(3.7, 1.1, 1.0)),
    "masked": Case(spaced(*THICK, use_mask_for_norm=[True]), image={"hole": True}),
    "rescaled": Case(spaced(*THICK, scheme="RescaleTo01Normalization")),
    "rgb": Case(spaced(*THICK, scheme="RGBTo01Normalization"), image={"most": 255}),
    "as it is": Case(spaced(*THICK, scheme="NoNormalization")),
    "left-handed": Case(spaced(*THICK), image={"axes": "LAS"}),
    "sagittal": Case(spaced(*THICK), image={"axes": "PIR"}),
    "to RAS": Case(lambda: read_by("NibabelIOWithReorient", spaced(*THICK)()), image={"axes": "LAS"}),
    "sagittal to RAS": Case(lambda: read_by("NibabelIOWithReorient", spaced(*FLAT)()), image={"axes": "PIR"}),
    "sagittal to RAS by ITK": Case(lambda: read_by("SimpleITKIOWithReorient", spaced(*FLAT)()), image={"axes": "PIR"}),
    "two channels": Case(
        lambda: made.plans(channels=2, spacing=THICK, use_mask_for_norm=[True, False]),
        {"channels": ("a", "b")},
        {"channels": 2},
    ),
    "smaller than a window": Case(spaced(*THICK), image={"shape": (6, 5, 3), "around": False}),
    "one voxel wide": Case(spaced(*THICK), image={"shape": (1, 9, 5), "around": False}),
    "halves to even": Case(spaced(2.0, 2.0, 2.0), image={"shape": (21, 23, 17), "zooms": (1.0, 1.0, 1.0)}),
    "old plans": Case(old_form),
    "cascade": Case(cascade, {"seed": 3}),
    "batch norm": Case(built(norm_op="torch.nn.modules.batchnorm.BatchNorm3d", nonlin="torch.nn.ReLU"), {"seed": 1}),
    "dropout": Case(built(dropout_op="torch.nn.modules.dropout.Dropout3d", dropout_op_kwargs={"p": 0.5})),
    "nonlinearity first": Case(built(nonlin_first=True, conv_bias=False, norm_op_kwargs={"eps": 1e-3})),
    "residual": Case(residual(3), {"seed": 1}),
    "residual, slices": Case(residual(2)),
    "average": Case(spaced(*THICK), other=spaced(1.3, 0.8)),
    "average that passes": Case(
        spaced(*THICK, scheme="CTNormalization"),
        {"channels": ("CT",), "mirrored": (0,)},
        other=spaced(2.0, 1.3, 1.2, scheme="CTNormalization"),
    ),
    "average of regions": Case(
        lambda: turned(spaced(1.5, 3.1, 1.2)(), 1, 0, 2),
        {"labels": {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": 3}, "regions_class_order": [1, 2, 3]},
        other=lambda: turned(spaced(3.1, 1.2)(), 1, 0, 2),
    ),
    "average of a cascade's stages": Case(cascade, {"seed": 3}, other=cascade),
}


def image(
    folder: Path,
    *,
    shape: tuple[int, int, int] = (26, 22, 15),
    zooms: tuple[float, float, float] = (1.0, 1.1, 3.7),
    axes: str = "LPS",
    channels: int = 1,
    around: bool = True,
    hole: bool = False,
    most: int = 4000,
) -> Path:
    """The first file of an image of soft noise. around: zeros at some of its sides. axes: (i, j, k) to these."""
    random = np.random.default_rng(0)
    affine = np.zeros((4, 4))
    for i, (axis, way) in enumerate(nibabel.orientations.axcodes2ornt(tuple(axes))):
        affine[int(axis), i] = way * zooms[i]
    affine[:, 3] = 10.0, -20.0, 5.0, 1.0
    for channel in range(channels):
        values = ndimage.gaussian_filter(random.normal(size=shape), 1.5) * 300 + 100
        if around:
            values[:3], values[:, :, -2:] = 0, 0
        if hole:
            values[8:12, 8:12, 4:7], values[:, :6] = 0, 0
        file = nibabel.Nifti1Image(np.clip(np.rint(values), -most if most > 255 else 0, most).astype(np.int16), affine)
        file.set_sform(affine, 1)
        file.set_qform(affine, 1)
        nibabel.save(file, folder / f"case_{channel:04d}.nii.gz")
    return folder / "case_0000.nii.gz"


def folder_of(case: Case, root: Path) -> Path:
    """The folder of a case; of a cascade its first stage beside it. Of an average the folder around its models."""
    plans = case.plans()
    folder = made.write(root / "model", plans, **case.folder)
    if "low" in plans["configurations"]:
        made.write(root / "first", plans, configuration="low", seed=1)
    elif case.other is not None:
        made.write(root / "other", case.other(), **{"seed": 5} | case.folder)
    if case.other is None:
        return folder
    return made.described(root, average=[{"folder": folder.name} for folder in models_in(root)])


def models_in(root: Path) -> list[Path]:
    return [root / name for name in ("model", "first", "other") if (root / name).is_dir()]


def by_nnunet(folder: Path, first: Path) -> NDArray[np.uint8]:
    """nnU-Net's labels (i, j, k) of an image, by one model or by the average of several around which the folder is."""
    if (folder / "plans.json").is_file():
        return _written(*_predicted(folder, first)[1:], first)
    each = [_predicted(model, first, probabilities=True) for model in models_in(folder)]
    mean = each[0][0]
    for probabilities, *_ in each[1:]:
        mean = mean + probabilities
    mean /= len(each)
    _, _, plans, labels, about = each[0]
    return _written(labels.convert_probabilities_to_segmentation(mean), plans, labels, about, first)


def _written(found: Any, plans: Any, labels: Any, about: Any, first: Path) -> NDArray[np.uint8]:
    """Labels as nnU-Net writes them."""
    plans.image_reader_writer_class().write_seg(found, str(first.parent / "labels.nii.gz"), about)
    return np.asarray(nibabel.load(first.parent / "labels.nii.gz").dataobj, np.uint8)


def _predicted(folder: Path, first: Path, *, probabilities: bool = False) -> tuple[Any, Any, Any, Any, Any]:
    """Probabilities where they are wanted, labels, plans, what they mean, and about the image."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import (
        convert_labelmap_to_one_hot,
        determine_num_input_channels,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = json.loads((folder / "dataset.json").read_text())
    saved = torch.load(folder / made.WEIGHTS, weights_only=False)
    plans = PlansManager(str(folder / "plans.json"))
    plan = plans.get_configuration(saved["init_args"]["configuration"])
    labels = plans.get_label_manager(dataset)
    network = get_network_from_plans(
        plan.network_arch_class_name,
        plan.network_arch_init_kwargs,
        plan.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, plan, dataset),
        labels.num_segmentation_heads,
        deep_supervision=False,
    )
    axes = saved["inference_allowed_mirroring_axes"]
    predictor = nnUNetPredictor(
        use_mirroring=bool(axes), perform_everything_on_device=False, device=torch.device("cpu")
    )
    predictor.manual_initialization(network, plans, plan, [saved["network_weights"]], dataset, "", axes)
    earlier = None
    if plan.previous_stage_name:
        earlier = first.parent / "earlier.nii.gz"
        low = by_nnunet(folder.parent / "first", first)
        nibabel.save(nibabel.Nifti1Image(low, nibabel.load(first).affine, nibabel.load(first).header), earlier)
    files = [str(file) for file in sorted(first.parent.glob("case_*"))]
    preprocessor = plan.preprocessor_class(verbose=False)
    data, seg, about = preprocessor.run_case(files, earlier and str(earlier), plans, plan, dataset)
    if earlier is not None:
        data = np.vstack((data, convert_labelmap_to_one_hot(seg[0], labels.foreground_labels, data.dtype)))
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data).float())
    found = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, plan, labels, about, return_probabilities=probabilities
    )
    return (*(found if probabilities else (found, None))[::-1], plans, labels, about)


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as root:
            found[name] = by_nnunet(folder_of(case, Path(root)), image(Path(root), **case.image))
        print(name, np.bincount(found[name].ravel()))
    np.savez_compressed(LABELS, **found)


if __name__ == "__main__":
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, tempfile.gettempdir())
    main()
