"""Random variants of a case: where it lies, how it was scanned, how bright it is.

Everything is a function of the tensors given and a ``torch.Generator``, so a sample can be made again from its seed.
One resampling does flip, rotation, scale, shift and warp together; MONAI's transforms, one after the other, take
several times as long on a CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, conv2d, conv3d, grid_sample, interpolate, pad

from medseg.allowed import INTEGER, INTEGERS, NUMBER, PAIR

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Augmentation:
    """How far a training sample may stray from the case it is made of. Zero and empty switch a part off."""

    flip_axes: Annotated[tuple[int, ...], INTEGERS] = ()
    rotation_degrees: Annotated[float, NUMBER] = 0.0
    scale: Annotated[float, NUMBER] = 0.0  # 0.2: each sample 1/1.2 to 1.2 times its size, ...
    stretch: Annotated[float, NUMBER] = 0.0  # ... and each axis that much again
    shift_voxels: Annotated[float, NUMBER] = 0.0
    warp_voxels: Annotated[float, NUMBER] = 0.0  # standard deviation of a smooth displacement
    warp_nodes: Annotated[int, INTEGER] = 5
    foreground: Annotated[float, NUMBER] = 0.0  # share of samples centred on a labelled voxel
    field_of_view: Annotated[tuple[float, float], PAIR] = (
        1.0,
        1.0,
    )  # share of the window that is imaged, per axis
    clip: Annotated[float, NUMBER] = 0.0  # share of the brightest voxels that may saturate
    gamma: Annotated[float, NUMBER] = 0.0  # exponent exp(-gamma) to exp(gamma)
    curve: Annotated[float, NUMBER] = 0.0  # strength of a random monotone brightness curve
    bias: Annotated[float, NUMBER] = 0.0  # log amplitude of a smooth multiplicative field
    blur_voxels: Annotated[float, NUMBER] = 0.0  # largest standard deviation
    coarse: Annotated[float, NUMBER] = 0.0  # largest factor by which one axis loses resolution, less one
    noise: Annotated[float, NUMBER] = 0.0  # largest standard deviation, of the range 0 to 1
    gain: Annotated[float, NUMBER] = 0.0  # after the bundle's own scaling
    offset: Annotated[float, NUMBER] = 0.0
    probability: Annotated[float, NUMBER] = 0.5  # of each: warp, curve, bias, blur, coarse, noise


def uniform(low: float, high: float, g: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def place(
    image: Tensor, label: Tensor, classes: int, size: Sequence[int], how: Augmentation, g: Generator
) -> tuple[Tensor, Tensor]:
    """Cut a randomly placed, turned, sized and warped box.

    image (C, *S) float, label (*S) whole numbers below classes -> (C, *size), (*size) int64. Outside the case the
    image repeats its edge or is dark, and the label is background.
    """
    dims = len(size)
    source = torch.tensor(label.shape, dtype=torch.float32)
    # source voxel = rotation @ (box voxel, counted from the box's middle) + centre
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    box = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    where = box @ rotation(dims, how, g).T + centre(label, size, how, g)
    if how.warp_voxels and uniform(0, 1, g) < how.probability:
        coarse = torch.randn((1, dims, *[how.warp_nodes] * dims), generator=g)
        strength = uniform(0, 1, g) * how.warp_voxels
        smooth = interpolate(coarse, size=tuple(size), mode=INTERPOLATION[dims], align_corners=True)
        where = where + strength * smooth[0].movedim(0, -1)
    # grid_sample wants -1 ... 1 and the last axis first
    grid = ((where * 2 + 1) / source - 1).flip(-1)[None]
    edge = "border" if uniform(0, 1, g) < 0.5 else "zeros"
    darkest = image.min()
    cut = grid_sample((image - darkest)[None], grid, mode="bilinear", padding_mode=edge, align_corners=False)
    parts = torch.stack([label == k for k in range(1, classes)]).float()
    votes = grid_sample(parts[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    best, winner = 1 - votes.sum(0), torch.zeros(tuple(size), dtype=torch.long)
    for k, vote in enumerate(votes, start=1):  # argmax over few channels, ten times as fast as torch's
        winner.masked_fill_(vote > best, k)
        best = torch.maximum(best, vote)
    return cut[0] + darkest, winner


def rotation(dims: int, how: Augmentation, g: Generator) -> Tensor:
    """Flip, rotation and scale as one matrix (dims, dims)."""
    matrix = torch.eye(dims)
    for axis in how.flip_axes:
        if uniform(0, 1, g) < 0.5:
            matrix[axis, axis] = -1.0
    for a, b in itertools.combinations(range(dims), 2):
        angle = math.radians(uniform(-how.rotation_degrees, how.rotation_degrees, g))
        in_plane = torch.eye(dims)
        in_plane[a, a] = in_plane[b, b] = math.cos(angle)
        in_plane[a, b], in_plane[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ in_plane
    whole = log_uniform(how.scale, g)
    return matrix @ torch.diag(torch.tensor([whole * log_uniform(how.stretch, g) for _ in range(dims)]))


def log_uniform(spread: float, g: Generator) -> float:
    """A factor between 1 / (1 + spread) and 1 + spread."""
    return math.exp(uniform(-1, 1, g) * math.log1p(spread))


def centre(label: Tensor, size: Sequence[int], how: Augmentation, g: Generator) -> Tensor:
    """Middle of the box in source voxels: on a labelled voxel, or anywhere the box lies inside; then shifted."""
    source = label.shape
    if how.foreground and uniform(0, 1, g) < how.foreground and (found := torch.nonzero(label)).shape[0]:
        middle = found[int(uniform(0, found.shape[0] - 1e-3, g))].float()
    else:
        spare = [max(n - s, 0) / 2 for n, s in zip(source, size, strict=True)]
        middle = torch.tensor([(n - 1) / 2 + uniform(-r, r, g) for n, r in zip(source, spare, strict=True)])
    return middle + torch.tensor([uniform(-how.shift_voxels, how.shift_voxels, g) for _ in source])


def rescan(image: Tensor, how: Augmentation, g: Generator) -> Tensor:
    """Another scanner, coil, protocol: (1, *S) of any range -> (1, *S) in about 0 to 1."""
    low, high = image.min(), image.max()
    if how.clip:
        keep = max(1, round(image.numel() * (1 - uniform(0, how.clip, g))))
        high = image.flatten().kthvalue(keep).values
    return retouch(((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1), how, g)


def retouch(image: Tensor, how: Augmentation, g: Generator) -> Tensor:
    """Another brightness, sharpness, noise: (C, *S) in 0 to 1 -> (C, *S) in about 0 to 1."""
    dims = image.dim() - 1

    def chance() -> bool:
        return uniform(0, 1, g) < how.probability

    if how.gamma:
        image = image ** math.exp(uniform(-how.gamma, how.gamma, g))
    if how.curve and chance():
        image = bend(image, how.curve, g)
    if how.bias and chance():
        nodes = torch.randn((1, 1, *[3] * dims), generator=g) * how.bias * uniform(0, 1, g)
        field = interpolate(nodes, size=image.shape[1:], mode=INTERPOLATION[dims], align_corners=True)
        image = image * field[0].exp()
    if how.coarse and chance():
        image = coarsen(image, int(uniform(0, dims - 1e-3, g)), 1 + uniform(0, how.coarse, g))
    if how.blur_voxels and chance():
        image = blur(image, uniform(0.2, max(0.2, how.blur_voxels), g))
    if how.noise and chance():
        image = image + torch.randn(image.shape, generator=g) * uniform(0, how.noise, g)
    return image


def coarsen(image: Tensor, axis: int, factor: float) -> Tensor:
    """Slices `factor` times as thick along one axis, brought back to the grid: (C, *S)."""
    size = image.shape[1:]
    fewer = tuple(max(2, round(n / factor)) if a == axis else n for a, n in enumerate(size))
    thick = adaptive_avg_pool3d(image, fewer) if len(fewer) == 3 else adaptive_avg_pool2d(image, (fewer[0], fewer[1]))
    return interpolate(thick[None], size=size, mode=INTERPOLATION[len(size)])[0]


def bend(image: Tensor, strength: float, g: Generator) -> Tensor:
    """A monotone curve through random knots: tissues keep their order, not their contrast."""
    steps = torch.exp(strength * torch.randn(8, generator=g))
    knots = torch.cat([torch.zeros(1), torch.cumsum(steps, 0) / steps.sum()])
    at = image * (len(knots) - 1)
    below = at.floor().clamp(0, len(knots) - 2).long()
    return knots[below] + (at - below) * (knots[below + 1] - knots[below])


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian along each axis, (C, *S), sigma in voxels."""
    dims, reach = image.dim() - 1, max(1, math.ceil(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    convolve = conv3d if dims == 3 else conv2d
    for axis in range(dims):
        shape = [1, 1] + [kernel.numel() if a == axis else 1 for a in range(dims)]
        edges = [0, 0] * (dims - 1 - axis) + [reach, reach] + [0, 0] * axis
        image = convolve(pad(image[:, None], edges, mode="replicate"), kernel.view(shape))[:, 0]
    return image
