"""New bundles: a folder to begin with, for each network of `medseg.networks`; and MeshNets that brainchop trained.

What is written are a bundle's own files, to be edited: nothing of them is read from here again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medseg.bundle.load import INFERENCE, METADATA
from medseg.bundle.weights import USUAL
from medseg.errors import UsageError

FAMILIES: Final = ("FCN", "SegNet", "UNet2015", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "MeshNet")
MODALITIES: Final = ("CT", "MR")
WINDOW: Final = {2: [256, 256], 3: [96, 96, 96]}  # a multiple of 48: the pyramids' bins divide it, see docs/networks.md
SPACING_MM: Final = {2: [1.0, 1.0, -1.0], 3: [1.5, 1.5, 1.5]}  # a slice stays where it is in 2D

CARD: Final = """# {name}

{task}

Fill in before anybody else uses it: data (what, how many, licence), intended use, limits, who it was not tried on,
scores on cases that were set aside, and the command that measured them.

    medseg train {folder} --data DIR -o {folder}-trained     DIR: images/ and labels/, NIfTI of the same names
    medseg evaluate {folder}-trained --data DIR
"""
MESHNET_CARD: Final = """# {name}

{description}.

Weights: {source}. Licence: {licence}. Labels, size and scaling of the input are those of its description.
Not a medical device; for research.
"""


def new_bundle(folder: Path, family: str, dims: int, *, segments: Sequence[str], modality: str) -> None:
    """Write a bundle without weights: `medseg train` makes them.

    family: a class of `medseg.networks`, in any case. dims: 2 or 3; the paper's size in 2D, the small one in 3D.
    segments: names of what is to be found. Raises UsageError.
    """
    name = next((one for one in FAMILIES if one.lower() == family.lower()), None)
    if name is None:
        raise UsageError(f"no network {family!r}: expected one of {', '.join(FAMILIES).lower()}")
    if dims not in WINDOW:
        raise UsageError(f"networks have 2 or 3 dimensions, found {dims}")
    if modality not in MODALITIES:
        raise UsageError(f"no template for modality {modality}: expected {' or '.join(MODALITIES)}, and edit it then")
    if not segments or not all(label.strip() for label in segments):
        raise UsageError("a bundle needs the name of at least one segment")
    network = {
        "_target_": f"medseg.networks.{name}",
        "spatial_dims": dims,
        "in_channels": 1,
        "out_channels": len(segments) + 1,
        **(_small(name) if dims == 3 else {}),
    }
    channels = ["background", *segments]
    task = f"Segmentation of {', '.join(segments)} in {modality}"
    scaling = _RANGE_HU if modality == "CT" else _percentiles(1, 99)
    inference = _inference(
        network,
        [_step("Orientationd", axcodes="RAS"), _step("Spacingd", pixdim=SPACING_MM[dims], mode="bilinear"), scaling],
        _inferer(dims),
    )
    metadata = _metadata(folder.name, task, modality, channels)
    metadata["medseg"] = {"expects": {"modality": [modality]}}
    card = CARD.format(name=folder.name, task=task, folder=folder.name)
    _write(folder, inference, metadata, card, {"configs/train.json": _training(dims)})


def meshnet_bundle(folder: Path, weights: Path, architecture: Path) -> None:
    """Write a bundle of a MeshNet that brainchop trained: its description (JSON) and its weights (safetensors).

    The input is brought to 1 mm and to the orientation and size of the description, and seen as one window.
    Raises UsageError where the description is not one of a MeshNet.
    """
    from medseg.networks.meshnet import arguments

    try:
        about = json.loads(architecture.read_text("utf-8"))
        wanted = about["input"]
        size, spacing = [int(n) for n in wanted["shape"]], [float(mm) for mm in wanted["spacing_mm"]]
        axcodes, scaling = str(wanted["orientation"])[:3], _scaling(wanted["intensity"])
        names = [about["labels"][str(number)] for number in range(len(about["labels"]))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{architecture}: not the description of a MeshNet: {error!r}") from error
    if not weights.is_file():
        raise UsageError(f"{weights}: no such file of weights")
    inference = _inference(
        {"_target_": "medseg.networks.MeshNet", **arguments(about)},
        [
            _step("Orientationd", axcodes=axcodes),
            _step("Spacingd", pixdim=spacing, mode="bilinear"),
            _step("ResizeWithPadOrCropd", spatial_size=size),
            scaling,
        ],
        {"_target_": "SlidingWindowInferer", "roi_size": size, "sw_batch_size": 1, "overlap": 0.0},
    )
    description = str(about.get("description", "MeshNet")).split(";")[0]
    metadata = _metadata(folder.name, f"{about.get('name', 'MeshNet')}: {description}", "MR", names)
    metadata["license"] = str(about.get("licence", "not said"))
    metadata["medseg"] = {"expects": {"modality": ["MR"], "fov_mm": [[100, 300], [100, 300], [100, 300]]}}
    card = MESHNET_CARD.format(
        name=folder.name,
        description=description,
        source=about.get("source", "not said"),
        licence=about.get("licence", "not said"),
    )
    _write(folder, inference, metadata, card, {})
    (folder / USUAL[0]).parent.mkdir()
    shutil.copyfile(weights, folder / USUAL[0])


def _small(name: str) -> dict[str, Any]:
    from medseg import networks

    return dict(getattr(networks, name).SMALL)


def _step(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


def _percentiles(lower: float, upper: float) -> dict[str, Any]:
    return _step("ScaleIntensityRangePercentilesd", lower=lower, upper=upper, b_min=0.0, b_max=1.0, clip=True)


_RANGE_HU: Final = _step("ScaleIntensityRanged", a_min=-175.0, a_max=250.0, b_min=0.0, b_max=1.0, clip=True)


def _scaling(intensity: Mapping[str, Any]) -> dict[str, Any]:
    """The MONAI transform that a description's `input.intensity` means."""
    if intensity["type"] == "minmax":
        return _step("ScaleIntensityd", minv=0.0, maxv=1.0)
    if intensity["type"] == "quantile" and intensity["clip"] == [0, 1]:
        return _percentiles(100 * float(intensity["low"]), 100 * float(intensity["high"]))
    raise ValueError(f"input.intensity {dict(intensity)}")


def _inferer(dims: int) -> dict[str, Any]:
    window = {"roi_size": WINDOW[dims], "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
    if dims == 2:
        return {"_target_": "SliceInferer", "spatial_dim": 2, **window}
    return {"_target_": "SlidingWindowInferer", **window}


def _inference(network: dict[str, Any], steps: list[dict[str, Any]], inferer: dict[str, Any]) -> dict[str, Any]:
    return {
        "bundle_root": ".",
        "device": "cpu",
        "network_def": network,
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [_step("LoadImaged"), _step("EnsureChannelFirstd"), *steps, _step("EnsureTyped")],
        },
        "inferer": inferer,
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    }


def _metadata(name: str, task: str, modality: str, channels: Sequence[str]) -> dict[str, Any]:
    image = {"type": "image", "modality": modality, "num_channels": 1, "channel_def": {"0": modality}}
    prediction = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(channels),
        "channel_def": {str(number): label for number, label in enumerate(channels)},
    }
    return {
        "version": "0.1.0",
        "name": name,
        "task": task,
        "description": f"{task}.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }


def _training(dims: int) -> dict[str, Any]:
    return {
        "seed": 1,
        "steps": 3000,
        "batch_size": 8 if dims == 2 else 2,
        "window": WINDOW[dims],
        "warmup_steps": 150,
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "batch": True},
        "optimizer": {"_target_": "AdamW", "lr": 0.001, "weight_decay": 0.0001},
        "held_out": {"modulus": 5, "remainder": 0},
        "augment": {
            "rotation_degrees": 10,
            "scale": 0.15,
            "foreground": 0.5,
            "gamma": 0.3,
            "noise": 0.05,
            "probability": 0.3,
        },
    }


def _write(
    folder: Path,
    inference: Mapping[str, Any],
    metadata: Mapping[str, Any],
    card: str,
    more: Mapping[str, Mapping[str, Any]],
) -> None:
    if folder.exists():
        raise UsageError(f"{folder} is there already: choose another name")
    for file, content in {INFERENCE: inference, METADATA: metadata, **more}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content, indent=4) + "\n", "utf-8")
    (folder / "docs").mkdir()
    (folder / "docs/README.md").write_text(card, "utf-8")
