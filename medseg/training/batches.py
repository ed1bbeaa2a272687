"""What the network sees at a step: a function of the seed and the step's number.

A 3D network sees a box of a case; its intensities are varied first and then prepared, as a volume of its own. A 2D
network sees a slice, of which the intensities were prepared with those of the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from medseg.training import augment
from medseg.training.plan import SliceDraw, TrainingPlan
from medseg.training.prepare import Prepare, Sample, SliceStack


def make_batch(
    samples: Sequence[Sample | SliceStack], classes: int, prepare: Prepare, plan: TrainingPlan, step: int
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *window) float32 and labels (B, 1, *window) int64 of a step; C: slices seen at once, else 1."""
    numbers = range(step * plan.batch_size, (step + 1) * plan.batch_size)
    windows = [
        make_window(samples[case_of(n, len(samples), plan)], classes, prepare, plan, plan.generator("window", n))
        for n in numbers
    ]
    images, labels = zip(*windows, strict=True)
    return torch.stack(images), torch.stack(labels)


def case_of(number: int, count: int, plan: TrainingPlan) -> int:
    """Whose turn it is: each of `count` cases once an epoch, every epoch in an order of its own."""
    epoch, position = divmod(number, count)
    return int(torch.randperm(count, generator=plan.generator("order", epoch))[position])


def make_window(
    sample: Sample | SliceStack, classes: int, prepare: Prepare, plan: TrainingPlan, g: Generator
) -> tuple[Tensor, Tensor]:
    """A variant of a case as another scan might show it, prepared as in inference: (C, *window) and (1, *window)."""
    how = plan.augment
    size = [max(1, round(n * augment.uniform(*how.field_of_view, g))) for n in plan.window]
    if isinstance(sample, SliceStack):
        image, label = augment.place(*draw(sample, plan.slices or SliceDraw(), g), classes, size, how, g)
        image = sample.darkest + sample.contrast * augment.retouch(image, how, g).clamp(0, 1)
    else:
        image, label = augment.place(sample.image, sample.label, classes, size, how, g)
        image = prepare(augment.rescan(image, how, g))
    image = image * (1 + augment.uniform(-how.gain, how.gain, g)) + augment.uniform(-how.offset, how.offset, g)
    return pad(image, plan.window), pad(label[None], plan.window)


def draw(stack: SliceStack, how: SliceDraw, g: Generator) -> tuple[Tensor, Tensor]:
    """A slice with its neighbours and its label: (slices, *S), (*S)."""
    if augment.uniform(0, 1, g) < how.labelled and stack.labelled:
        k = stack.labelled[int(augment.uniform(0, len(stack.labelled) - 1e-3, g))]
    else:
        k = int(augment.uniform(0, len(stack.label) - 1e-3, g))
    step = 0.0 if augment.uniform(0, 1, g) < how.alone else augment.uniform(*how.step, g)
    last, reach = len(stack.label) - 1, stack.slices // 2
    seen = []
    for away in range(-reach, reach + 1):
        at = min(max(k + away * step, 0.0), float(last))
        below = min(int(at), max(last - 1, 0))
        seen.append(torch.lerp(stack.image[below], stack.image[min(below + 1, last)], at - below))
    return torch.stack(seen), stack.label[k]


def pad(image: Tensor, window: Sequence[int]) -> Tensor:
    """Zeros, half on each side: what the sliding window does to an image smaller than itself."""
    missing = [n - s for n, s in zip(window, image.shape[1:], strict=True)]
    return functional.pad(image, [part for m in reversed(missing) for part in (m // 2, m - m // 2)])
