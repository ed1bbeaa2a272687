"""The five families of segmentation networks, in 2D and 3D from the same lines, MeshNet, and nnU-Net's two.

Each is `Net(spatial_dims, in_channels, out_channels, ...)` and maps (B, C, *S) -> (B, K, *S) logits for any S.
Defaults are the papers' sizes in 2D; `**Net.SMALL` are arguments of a small one, made for 3D on a CPU.
"""

from medseg.networks.deeplab import DeepLabV3, DeepLabV3Plus
from medseg.networks.encoder_decoder import SegNet
from medseg.networks.fcn import FCN
from medseg.networks.meshnet import MeshNet
from medseg.networks.plain_conv_unet import PlainConvUNet
from medseg.networks.pspnet import PSPNet
from medseg.networks.residual_encoder_unet import ResidualEncoderUNet
from medseg.networks.unet import UNet2015

__all__ = [
    "FCN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "MeshNet",
    "PSPNet",
    "PlainConvUNet",
    "ResidualEncoderUNet",
    "SegNet",
    "UNet2015",
]
