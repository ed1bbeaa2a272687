"""What the network sees at a step: a function of the seed and the step's number.

A 3D network sees a box of a case; its intensities are varied first and then prepared, as a volume of its own, unless
they have a unit. A 2D network sees a slice, of which the intensities were prepared with those of the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from medseg.training import augment
from medseg.training.plan import SliceDraw, TrainingPlan
from medseg.training.prepare import InMemory, Prepare, PreparedSample, SliceStack


def make_batch(
    samples: Sequence[InMemory], classes: int, prepare: Prepare, plan: TrainingPlan, step: int
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *window) float32 and labels (B, 1, *window) int64 of a step; C: images times slices."""
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
    sample: InMemory, classes: int, prepare: Prepare, plan: TrainingPlan, g: Generator
) -> tuple[Tensor, Tensor]:
    """A variant of a case as another scan might show it, prepared as in inference: (C, *window) and (1, *window)."""
    how = plan.augment
    size = [max(1, round(n * augment.uniform(*how.field_of_view, g))) for n in plan.window]
    drawn = (
        draw(sample, plan.slices or SliceDraw(), g) if isinstance(sample, SliceStack) else (sample.image, sample.label)
    )
    image, label = augment.place(*drawn, classes, size, how, g)
    slices = sample.slices if isinstance(sample, SliceStack) else 1
    seen = image.view(slices, -1, *size)  # all images of a slice, then of the next
    if isinstance(sample, PreparedSample):
        varied = torch.stack([augment.retouch(one, how, g) for one in seen.unbind(1)], dim=1)
        seen = sample.darkest + sample.contrast * varied.clamp(0, 1)
    else:
        seen = prepare(torch.cat([augment.rescan(one, how, g) for one in seen.unbind(1)]))[None]
    bright = [(augment.uniform(-how.gain, how.gain, g), augment.uniform(-how.offset, how.offset, g)) for _ in seen[0]]
    seen = torch.stack([one * (1 + by) + more for one, (by, more) in zip(seen.unbind(1), bright, strict=True)], dim=1)
    for number in missing(sample, plan, g):
        seen[:, number] = prepare(torch.zeros((seen.shape[1], 1, 1, 1)))[number].item()
    return pad(seen.flatten(0, 1), plan.window), pad(label[None], plan.window)


def missing(sample: InMemory, plan: TrainingPlan, g: Generator) -> list[int]:
    """Images that a variant does without: those that the case has not, and by chance others that may lack."""
    dropped = [number for number in sample.optional if augment.uniform(0, 1, g) < (plan.drop or 0.0)]
    return [*sample.absent, *dropped]


def draw(stack: SliceStack, how: SliceDraw, g: Generator) -> tuple[Tensor, Tensor]:
    """A slice with its neighbours, all images of each, and its label: (slices * C, *S), (*S)."""
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
    return torch.cat(seen), stack.label[k]


def pad(image: Tensor, window: Sequence[int]) -> Tensor:
    """Zeros, half on each side: what the sliding window does to an image smaller than itself."""
    missing = [n - s for n, s in zip(window, image.shape[1:], strict=True)]
    return functional.pad(image, [part for m in reversed(missing) for part in (m // 2, m - m // 2)])
