"""Bundles in the manner of the MONAI model zoo, with small networks and random weights.

Whole configurations in the zoo's shape (imports, dataset, loaders, evaluator, handlers, device idioms, run), so that
loading them shows that what inference does not need is left alone. Each factory writes a bundle into `folder` and
gives the folder back; the tests of other packages use them too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


def spleen_like(
    folder: Path, *, seed: int = 0, window: tuple[int, int, int] = (32, 32, 32), smooth: bool = False
) -> Path:
    """As spleen_ct_segmentation: CT, UNet, probabilities inverted; model.pt.

    smooth: make the weights those of a network whose labels do not flicker from voxel to voxel.
    """
    config = _config(
        network={
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": [4, 8, 16],
            "strides": [2, 2],
            "num_res_units": 2,
            "norm": "batch",
        },
        preparing=[
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -57,
                "a_max": 164,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": list(window), "sw_batch_size": 4, "overlap": 0.5},
        finishing=[_softmax(), _invert(nearest_interp=False), _argmax()],
    )
    config["output_ext"] = ".nii.gz"
    config["output_dtype"] = "$numpy.float32"
    config["postprocessing"]["transforms"][-1]["output_dtype"] = "@output_dtype"
    names = {"0": "background", "1": "spleen"}
    metadata = _metadata("Decathlon spleen segmentation", "CT", "hounsfield", window, names)
    return write(folder, config, metadata, seed=seed, smooth=smooth)


def threshold(folder: Path) -> Path:
    """A bundle whose answer is known: a 1x1x1 convolution, label 1 above 0 HU."""
    config = _config(
        network={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        preparing=[
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -1000,
                "a_max": 1000,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
        ],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.25},
        finishing=[_softmax(), _invert(nearest_interp=False), _argmax()],
    )
    names = {"0": "background", "1": "object"}
    write_config(folder, config, _metadata("Above 0 HU", "CT", "hounsfield", (16, 16, 16), names))
    weights = {"weight": torch.tensor([0.0, 40.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, -20.0])}
    torch.save(weights, folder / "models/model.pt")
    return folder


def swin_like(folder: Path, *, seed: int = 0) -> Path:
    """As swin_unetr_btcv_segmentation: CT, SwinUNETR with the `img_size` that MONAI has dropped, 13 organs."""
    window = (64, 64, 64)  # the least that five halvings leave more than one voxel of
    config = _config(
        network={
            "_target_": "SwinUNETR",
            "spatial_dims": 3,
            "img_size": 64,
            "in_channels": 1,
            "out_channels": 14,
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "use_checkpoint": False,
        },
        preparing=[
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -175,
                "a_max": 250,
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": list(window), "sw_batch_size": 4, "overlap": 0.5},
        finishing=[_softmax(), _invert(nearest_interp=False), _argmax()],
    )
    config["preprocessing"]["transforms"][0]["reader"] = "ITKReader"
    organs = (
        "Spleen",
        "Right Kidney",
        "Left Kidney",
        "Gallbladder",
        "Esophagus",
        "Liver",
        "Stomach",
        "Aorta",
        "IVC",
        "Portal and Splenic Veins",
        "Pancreas",
        "Right adrenal gland",
        "Left adrenal gland",
    )
    names = {"0": "background"} | {str(i): organ for i, organ in enumerate(organs, start=1)}
    return write(folder, config, _metadata("BTCV multi-organ", "CT", "hounsfield", window, names), seed=seed)


def wholebody_like(folder: Path, *, seed: int = 0, classes: int = 105) -> Path:
    """As wholeBody_ct_segmentation: SegResNet, whole-volume statistics, labels inverted, gaussian windows, `@a#b`."""
    window = (32, 32, 32)
    config = _config(
        network={
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": classes,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
            "dropout_prob": 0.2,
        },
        preparing=[
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": "@pixdim", "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "@image_key", "minv": -1.0, "maxv": 1.0},
        ],
        inferer={
            "_target_": "SlidingWindowInferer",
            "roi_size": list(window),
            "sw_batch_size": "@displayable_configs#sw_batch_size",
            "overlap": "@displayable_configs#sw_overlap",
            "padding_mode": "replicate",
            "mode": "gaussian",
            "device": DEVICE,
        },
        finishing=[_softmax(), _argmax(), _invert(nearest_interp=True, orig_keys="@image_key")],
    )
    config |= {
        "displayable_configs": {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1},
        "image_key": "image",
        "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
    }
    config["initialize"] = ["$setattr(torch.backends.cudnn, 'benchmark', True)", "$@checkpointloader(@evaluator)"]
    names = {"0": "background"} | {str(i): f"structure {i}" for i in range(1, classes)}
    return write(folder, config, _metadata("Whole body segmentation", "CT", "hounsfield", window, names), seed=seed)


def prostate_like(folder: Path, *, seed: int = 0) -> Path:
    """As prostate_mri_anatomy: MR, scaled then normalised, largest components in model space, then labels inverted."""
    window = (32, 32, 32)
    config = _config(
        network={
            "_target_": "monai.networks.nets.UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": [4, 8, 16],
            "strides": [2, 2],
            "num_res_units": 1,
            "norm": "batch",
            "act": "prelu",
            "dropout": 0.15,
        },
        preparing=[
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [0.5, 0.5, 0.5], "mode": "bilinear"},
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": 1},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": list(window), "sw_batch_size": 4, "overlap": 0.5},
        finishing=[
            _argmax(),
            {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]},
            _invert(nearest_interp=False, meta_key_postfix="meta_dict"),
        ],
    )
    config["imports"] = ["$import pandas as pd", "$import os"]
    config["datalist"] = "$list(@dataset_dir + pd.read_csv(@dataset_dir + 'test.csv').t2)"
    names = {"0": "background", "1": "central gland", "2": "peripheral zone"}
    return write(folder, config, _metadata("Prostate anatomy", "MRI", "magnitude", window, names), seed=seed)


def segresnet_like(folder: Path, *, seed: int = 0, smooth: bool = False) -> Path:
    """A SegResNet on MR with a "medseg" key: fixed range, overlapping segments by sigmoid; safetensors."""
    window = (32, 40, 24)
    config = _config(
        network={
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        preparing=[
            {"_target_": "Orientationd", "keys": ["image"], "axcodes": "LPS"},
            {"_target_": "Spacingd", "keys": ["image"], "pixdim": [2.0, 2.0, 2.0], "mode": ["bilinear"]},
            {"_target_": "ScaleIntensityRanged", "keys": ["image"], "a_min": 0, "a_max": 1000, "b_min": 0, "b_max": 1},
        ],
        inferer={
            "_target_": "SlidingWindowInferer",
            "roi_size": list(window),
            "sw_batch_size": 2,
            "overlap": [0.25, 0.25, 0.5],
            "mode": "gaussian",
        },
        finishing=[
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            _invert(nearest_interp=False),
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        ],
    )
    metadata = _metadata("Tissue", "MR", "magnitude", window, {"0": "whole", "1": "core"})
    metadata["medseg"] = {
        "research_only": True,
        "precisions": ["fp32", "bf16"],
        "expects": {"modality": ["MR"], "series_description": "*T1*", "min_slices": 8},
        "segments": [
            {"number": 1, "label": "Whole", "category": "SCT:85756007", "type": "SCT:85756007", "color": [200, 80, 80]},
            {"number": 2, "label": "Core", "category": "SCT:85756007", "type": "SCT:85756007", "volume_ml": [0.1, 50]},
        ],
    }
    return write(folder, config, metadata, seed=seed, smooth=smooth, safetensors=True)


def brats_like(folder: Path, channels: list[dict[str, Any]] | None = None, *, own: bool = False, seed: int = 0) -> Path:
    """As brats_mri_segmentation: MR in several sequences, SegResNet, overlapping segments.

    channels: of the "medseg" key; without it T1, T1c, FLAIR by `channel_def`. own: with steps that run without MONAI.
    """
    names = [channel["name"] for channel in channels or ()] or ["T1", "T1c", "FLAIR"]
    normalize: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    steps = [{"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.5]}] if own else []
    config = _config(
        network={
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": len(names),
            "out_channels": 2,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        preparing=[*steps, normalize if own else normalize | {"nonzero": True, "channel_wise": True}],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [24, 24, 16], "sw_batch_size": 2, "overlap": 0.5},
        finishing=[
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            *([_invert(nearest_interp=False)] if own else []),
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        ],
    )
    metadata = _metadata("Tumour", "MR", "magnitude", (24, 24, 16), {"0": "whole", "1": "core"})
    image = metadata["network_data_format"]["inputs"]["image"]
    image["num_channels"], image["channel_def"] = len(names), {str(n): name for n, name in enumerate(names)}
    if channels:
        metadata["medseg"] = {"channels": channels}
    return write(folder, config, metadata, seed=seed)


def ventricular_like(folder: Path, *, seed: int = 0) -> Path:
    """As ventricular_short_axis_3label: a 2D UNet that goes through the slices."""
    config = _config(
        network={
            "_target_": "UNet",
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 4,
            "channels": [4, 8, 16],
            "strides": [2, 2],
            "num_res_units": 1,
        },
        preparing=[
            {"_target_": "ScaleIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ],
        inferer={"_target_": "SliceInferer", "roi_size": [64, 64], "spatial_dim": 2},
        finishing=[_softmax(), _invert(nearest_interp=False, meta_key_postfix="meta_dict"), _argmax()],
    )
    names = {"0": "background", "1": "left ventricle", "2": "myocardium", "3": "right ventricle"}
    return write(folder, config, _metadata("Ventricles", "MR", "magnitude", (64, 64), names), seed=seed)


def write(
    folder: Path,
    config: dict[str, Any],
    metadata: dict[str, Any],
    *,
    seed: int = 0,
    smooth: bool = False,
    safetensors: bool = False,
) -> Path:
    """A bundle's folder from its configuration, with random weights of its network."""
    write_config(folder, config, metadata)
    state = random_state(config["network_def"], seed, smooth=smooth)
    if safetensors:
        save_file(state, folder / "models/model.safetensors")
    else:
        torch.save(state, folder / "models/model.pt")
    return folder


def write_config(folder: Path, config: dict[str, Any], metadata: dict[str, Any]) -> None:
    """A bundle's folder, its weights still to come."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "configs/inference.json").write_text(json.dumps(config, indent=4))
    (folder / "configs/metadata.json").write_text(json.dumps(metadata, indent=4))
    (folder / "LICENSE").write_text("\nApache License 2.0\n")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "inference.json") -> Path:
    """Change a bundle's configuration in place."""
    path = folder / "configs" / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def random_state(network: dict[str, Any], seed: int, *, smooth: bool = False) -> dict[str, torch.Tensor]:
    """State dict of a newly made MONAI network with seeded weights."""
    import monai.networks.nets as nets

    arguments = {key: value for key, value in network.items() if key not in ("_target_", "img_size")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = getattr(nets, network["_target_"].rpartition(".")[2])(**arguments)
        for module in made.modules():  # running statistics as after training, not the identity
            if isinstance(module, torch.nn.BatchNorm3d | torch.nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        if smooth:
            _smoothen(made)
    return copy.deepcopy(made.state_dict())


def _smoothen(network: torch.nn.Module) -> None:
    """Make every convolution kernel an average over its extent, so that neighbouring voxels agree."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
                axes = tuple(range(2, module.weight.ndim))
                module.weight.copy_(module.weight.mean(axes, keepdim=True).expand_as(module.weight))


def _softmax() -> dict[str, Any]:
    return {"_target_": "Activationsd", "keys": "pred", "softmax": True}


def _argmax() -> dict[str, Any]:
    return {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}


def _invert(**changes: Any) -> dict[str, Any]:
    common = {"keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "to_tensor": True}
    return {"_target_": "Invertd", **common, **changes}


def _config(
    *,
    network: dict[str, Any],
    preparing: list[dict[str, Any]],
    inferer: dict[str, Any],
    finishing: list[dict[str, Any]],
) -> dict[str, Any]:
    """Around what inference needs, everything else that a zoo configuration holds."""
    keys = preparing[0]["keys"]
    loading = [{"_target_": "LoadImaged", "keys": keys}, {"_target_": "EnsureChannelFirstd", "keys": keys}]
    saving = {"_target_": "SaveImaged", "keys": "pred", "meta_keys": "pred_meta_dict", "output_dir": "@output_dir"}
    return {
        "imports": ["$import glob", "$import numpy", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data/Task",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [*loading, *preparing]},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": [*finishing, saving]},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


def _metadata(task: str, modality: str, format_: str, window: tuple[int, ...], names: dict[str, str]) -> dict[str, Any]:
    common = {"type": "image", "spatial_shape": list(window), "dtype": "float32", "is_patch_data": True}
    return {
        "version": "0.5.9",
        "changelog": {"0.5.9": "as the zoo writes it"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "required_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
        "task": task,
        "description": f"{task}, with random weights",
        "authors": "the medseg tests",
        "copyright": "Copyright (c) the medseg authors",
        "intended_use": "tests",
        "network_data_format": {
            "inputs": {
                "image": common
                | {
                    "format": format_,
                    "modality": modality,
                    "num_channels": 1,
                    "value_range": [0, 1],
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": common
                | {
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [0, 1],
                    "channel_def": names,
                }
            },
        },
    }
