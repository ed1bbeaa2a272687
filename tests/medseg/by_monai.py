"""What MONAI makes of arrays, by its own transforms, windows and inversion."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle
from medseg.bundle.network import load_network
from medseg.bundle.transforms import monai_transforms
from medseg.dicom.series import Stack
from medseg.inference.grids.grid import LPS_TO_RAS


def labels_by_monai(voxels: NDArray[np.float32], of: Stack, bundle: Bundle) -> NDArray[np.uint8]:
    """(k, segments, j, i) of all channels (C, k, j, i) on a stack's grid."""
    affine = torch.from_numpy(LPS_TO_RAS @ of.affine[:, [2, 1, 0, 3]])
    images = torch.from_numpy(voxels).permute(0, 3, 2, 1).clone()
    given = {key: images[n : n + 1] for n, key in enumerate(bundle.recipe.keys)} or {"image": images}
    before, after = monai_transforms(bundle, torch.device("cpu"))
    data = before({key: MetaTensor(image, affine=affine) for key, image in given.items()})
    window = bundle.recipe.window
    with torch.no_grad():
        network = load_network(bundle, torch.device("cpu"))
        inferer = SlidingWindowInferer(window.roi, 2, window.overlap)
        data["pred"] = MetaTensor(inferer(data["image"][None], network)[0], meta=data["image"].meta)
    return after(data)["pred"].as_tensor().permute(3, 0, 2, 1).numpy().astype(np.uint8)
