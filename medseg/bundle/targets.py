"""The classes a bundle may name in `_target_`: an exact table of names, and nothing else.

A dotted name is looked up whole, never walked: `monai.utils.misc.os.system` is a path that exists and is not here.
Short names resolve as MONAI's own parser resolves them ("UNet", "Spacingd", "SpacingDict").
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Role(StrEnum):
    NETWORK = "network"
    TRANSFORM = "transform"
    INFERER = "inferer"


@dataclass(frozen=True)
class Target:
    """A class that may be named: where it is defined, what it is for, and its one name used here."""

    role: Role
    module: str
    name: str

    @property
    def listed(self) -> str:
        """The spelling that stands for all of its spellings: short for MONAI's, in full for others."""
        return self.name if self.module.startswith("monai.") else f"{self.module}.{self.name}"

    def load(self) -> Any:
        """The class itself. Raises ImportError or AttributeError where the installed library lacks it."""
        return getattr(importlib.import_module(self.module), self.name)


# module of monai.networks.nets -> class -> other spellings MONAI gives it
NETWORKS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "ahnet": {"AHNet": ("Ahnet", "AHnet")},
    "attentionunet": {"AttentionUnet": ()},
    "basic_unet": {"BasicUNet": ("BasicUnet", "Basicunet", "basicunet")},
    "basic_unetplusplus": {"BasicUNetPlusPlus": ("BasicUnetPlusPlus", "BasicunetPlusPlus", "basicunetplusplus")},
    "dynunet": {"DynUNet": ("DynUnet", "Dynunet")},
    "flexible_unet": {"FlexibleUNet": ("FlexUNet",)},
    "highresnet": {"HighResNet": ()},
    "mednext": {
        "MedNeXt": ("MedNext",),
        "MedNeXtSmall": ("MedNeXtS", "MedNextS", "MedNextSmall"),
        "MedNeXtBase": ("MedNeXtB", "MedNextB", "MedNextBase"),
        "MedNeXtMedium": ("MedNeXtM", "MedNextM", "MedNextMedium"),
        "MedNeXtLarge": ("MedNeXtL", "MedNextL", "MedNextLarge"),
    },
    "segresnet": {"SegResNet": ()},
    "segresnet_ds": {"SegResNetDS": (), "SegResNetDS2": ()},
    "swin_unetr": {"SwinUNETR": ()},
    "unet": {"UNet": ("Unet",)},
    "unetr": {"UNETR": ()},
    "vnet": {"VNet": ()},
}
# module of medseg.networks -> classes; named in full, or as they are imported
OWN_NETWORKS: Final[dict[str, tuple[str, ...]]] = {
    "deeplab": ("DeepLabV3", "DeepLabV3Plus"),
    "encoder_decoder": ("SegNet",),
    "fcn": ("FCN",),
    "meshnet": ("MeshNet",),
    "plain_conv_unet": ("PlainConvUNet",),
    "pspnet": ("PSPNet",),
    "residual_encoder_unet": ("ResidualEncoderUNet",),
    "unet": ("UNet2015",),
}
# module of monai.transforms -> dictionary transforms, without their ending "d"
TRANSFORMS: Final[dict[str, tuple[str, ...]]] = {
    "croppad": (
        "BorderPad",
        "CenterSpatialCrop",
        "CropForeground",
        "DivisiblePad",
        "ResizeWithPadOrCrop",
        "SpatialPad",
    ),
    "intensity": (
        "ClipIntensityPercentiles",
        "GaussianSmooth",
        "MaskIntensity",
        "MedianSmooth",
        "NormalizeIntensity",
        "ScaleIntensity",
        "ScaleIntensityRange",
        "ScaleIntensityRangePercentiles",
        "ThresholdIntensity",
    ),
    "io": ("LoadImage", "SaveImage"),
    "post": (
        "Activations",
        "AsDiscrete",
        "FillHoles",
        "Invert",
        "KeepLargestConnectedComponent",
        "LabelFilter",
        "RemoveSmallObjects",
    ),
    "spatial": ("Flip", "Orientation", "ResampleToMatch", "Resize", "Rotate90", "Spacing", "Zoom"),
    "utility": (
        "CastToType",
        "ConcatItems",
        "CopyItems",
        "DeleteItems",
        "EnsureChannelFirst",
        "EnsureType",
        "Identity",
        "SelectItems",
        "SqueezeDim",
        "ToDevice",
        "ToTensor",
        "Transpose",
    ),
}
INFERERS: Final = ("SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
OWN_INFERERS: Final[dict[str, tuple[str, ...]]] = {"inferers": ("SliceStackInferer",)}
LAYERS: Final = ("Conv2d", "Conv3d", "Identity")


def _table() -> dict[str, Target]:
    table: dict[str, Target] = {}
    for file, classes in NETWORKS.items():
        module = f"monai.networks.nets.{file}"
        for name, others in classes.items():
            target = Target(Role.NETWORK, module, name)
            for spelling in (name, *others):
                for prefix in ("", "monai.networks.nets.", f"{module}."):
                    table[prefix + spelling] = target
    for file, own in OWN_NETWORKS.items():
        for name in own:
            target = Target(Role.NETWORK, f"medseg.networks.{file}", name)
            table[f"medseg.networks.{name}"] = table[f"medseg.networks.{file}.{name}"] = target
    for file, names in TRANSFORMS.items():
        module = f"monai.transforms.{file}.dictionary"
        for name in names:
            target = Target(Role.TRANSFORM, module, f"{name}d")
            for ending in ("d", "D", "Dict"):
                for prefix in ("", "monai.transforms.", f"{module}."):
                    table[f"{prefix}{name}{ending}"] = target
    for prefix in ("", "monai.transforms.", "monai.transforms.compose."):
        table[f"{prefix}Compose"] = Target(Role.TRANSFORM, "monai.transforms.compose", "Compose")
    for name in INFERERS:
        for prefix in ("", "monai.inferers.", "monai.inferers.inferer."):
            table[prefix + name] = Target(Role.INFERER, "monai.inferers.inferer", name)
    for file, own in OWN_INFERERS.items():
        for name in own:
            target = Target(Role.INFERER, f"medseg.bundle.{file}", name)
            table[f"medseg.bundle.{file}.{name}"] = target
    for name in LAYERS:
        table[f"torch.nn.{name}"] = Target(Role.NETWORK, "torch.nn", name)
    return table


TARGETS: Final[dict[str, Target]] = _table()
