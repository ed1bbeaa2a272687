"""Whether a model's planes can pass one by one, or it needs its whole volume: what its plans say of that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from medseg.bundle.nnunet.model import Method, NnUNet, Scheme

EVENLY: Final = "nnU-Net lays windows evenly over all slices: they wait for the last one, on disk"
ORDERS: Final = (1, 3)  # of splines along the slices


def why_whole(model: NnUNet) -> str | None:
    """Why a volume must be in memory as a whole, whatever its geometry; None where it need not."""
    return next(iter(_reasons(model)), None)


def _reasons(model: NnUNet) -> Iterable[str]:
    if model.previous_stage is not None:
        yield "the labels of a cascade's first stage are resampled as a whole"
    if model.flat:
        yield "each slice is an image of its own"
    if any(channel.scheme is Scheme.Z_SCORE for channel in model.channels):
        yield f"{Scheme.Z_SCORE} needs the mean and the deviation of the whole volume"
    if model.cleanup:
        yield "post-processing keeps the largest piece of the whole volume"
    how = model.image
    by_splines = how.order in ORDERS and (how.order_z == 0 or how.separate is False)
    if not (how.method is Method.NONE or (how.method is Method.SPLINE and by_splines)):
        yield f"images are resampled as a whole ({how.method}, order {how.order}, between slices {how.order_z})"
    if not model.scores.by_planes:
        how = model.scores
        yield f"scores are resampled as a whole ({how.method}, order {how.order}, between slices {how.order_z})"
