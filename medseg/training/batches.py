"""What the network sees at a step: a function of the seed and the step's number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from medseg.training import augment
from medseg.training.plan import Plan
from medseg.training.prepare import Prepare, Sample


def make_batch(
    samples: Sequence[Sample], classes: int, prepare: Prepare, plan: Plan, step: int
) -> tuple[Tensor, Tensor]:
    """Images (B, 1, *window) float32 and labels (B, 1, *window) int64 of a step."""
    numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
    windows = [
        make_window(samples[turn(n, len(samples), plan)], classes, prepare, plan, plan.generator("window", n))
        for n in numbers
    ]
    images, labels = zip(*windows, strict=True)
    return torch.stack(images), torch.stack(labels)


def turn(number: int, count: int, plan: Plan) -> int:
    """Whose turn it is: each of `count` cases once an epoch, every epoch in an order of its own."""
    epoch, position = divmod(number, count)
    return int(torch.randperm(count, generator=plan.generator("order", epoch))[position])


def make_window(sample: Sample, classes: int, prepare: Prepare, plan: Plan, g: Generator) -> tuple[Tensor, Tensor]:
    """A variant of a case as another scan might show it, prepared as in inference: (1, *window) image and label."""
    how = plan.augment
    size = [max(1, round(n * augment.uniform(*how.field_of_view, g))) for n in plan.window]
    image, label = augment.place(sample.image, sample.label, classes, size, how, g)
    image = prepare(augment.rescan(image, how, g))
    image = image * (1 + augment.uniform(-how.gain, how.gain, g)) + augment.uniform(-how.offset, how.offset, g)
    return pad(image, plan.window), pad(label[None], plan.window)


def pad(image: Tensor, window: Sequence[int]) -> Tensor:
    """Zeros, half on each side: what the sliding window does to an image smaller than itself."""
    missing = [n - s for n, s in zip(window, image.shape[1:], strict=True)]
    return functional.pad(image, [part for m in reversed(missing) for part in (m // 2, m - m // 2)])
