"""nnU-Net's folders for tests: the small ones of the shared data, and others made from scratch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.bundle.nnunet.dataset import read_dataset
from medseg.bundle.nnunet.plans import read_plans
from medseg.bundle.schema import Reader
from medseg.bundle.targets import TARGETS

UNET = "dynamic_network_architectures.architectures.unet"
SPLINE = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def copied(source: Path, folder: Path, **options: Any) -> Path:
    """A trained-model folder, with what a bundle's metadata says of it."""
    shutil.copytree(source, folder)
    return described(folder, **options) if options else folder


def described(folder: Path, **options: Any) -> Path:
    """A folder with metadata, whose "nnunet" these are."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/metadata.json").write_text(json.dumps({"medseg": {"nnunet": options}}))
    return folder


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def plans(dims: int = 3, *, channels: int = 1, scheme: str = "ZScoreNormalization", **changes: Any) -> dict[str, Any]:
    """Plans of one configuration, "net", with two stages. changes: of the configuration."""
    ones, twos, threes = ([size] * dims for size in (1, 2, 3))
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8] * dims,
        "spacing": [1.0] * dims,
        "normalization_schemes": [scheme] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": SPLINE,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": SPLINE | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": SPLINE | {"order": 1},
        "architecture": {
            "network_class_name": f"{UNET}.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [2, 3],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [threes, threes],
                "strides": [ones, twos],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }
    intensities = {"mean": 50.0, "std": 20.0, "percentile_00_5": 0.0, "percentile_99_5": 100.0}
    return {
        "dataset_name": "Dataset001_Made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): intensities for n in range(channels)},
        "configurations": {"net": configuration},
    }


def write(
    folder: Path,
    made: dict[str, Any] | None = None,
    *,
    labels: Mapping[str, Any] | None = None,
    channels: Sequence[str] = ("MR",),
    seed: int = 0,
    mirrored: Any = None,
    configuration: str = "net",
    **dataset: Any,
) -> Path:
    """A trained-model folder with one fold of random weights."""
    made = made or plans(channels=len(channels))
    content = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": labels or {"background": 0, "organ": 1, "lesion": 2},
        "file_ending": ".nii.gz",
        **dataset,
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(made))
    (folder / "dataset.json").write_text(json.dumps(content))
    about = read_dataset(Reader("model", "dataset.json", content))
    network = read_plans(Reader("model", "plans.json", made), configuration, about)[1]
    torch.manual_seed(seed)
    weights = TARGETS[network.pop("_target_")].load()(**network).state_dict()
    torch.save(checkpoint(weights, mirrored, configuration), folder / WEIGHTS)
    return folder


WEIGHTS = "fold_0/checkpoint_final.pth"


def checkpoint(weights: Mapping[str, Any], mirrored: Any = None, configuration: str = "net") -> dict[str, Any]:
    """As nnU-Net writes it, numpy's numbers included."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": {
            "plans": {},
            "configuration": configuration,
            "fold": 0,
            "dataset_json": {},
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirrored,
    }


def rewrite_checkpoint(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the checkpoint of a folder made here holds."""
    content = torch.load(folder / WEIGHTS, weights_only=False)
    change(content)
    torch.save(content, folder / WEIGHTS)
