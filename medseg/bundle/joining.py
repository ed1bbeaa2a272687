"""Images under keys of their own, which a configuration joins to the network's channels (ConcatItemsd).

    CT    Orient  Resample  ScaleRange               Orient  Resample  ChannelWise(ScaleRange, ScaleRange)
    PET   Orient  Resample  ScaleRange Normalize ->                    ChannelWise(nothing, Normalize)

All are on one grid before the first step, so they must be moved alike. What needs a whole volume stands side by side:
channels wait for theirs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

from medseg.bundle.arguments import Config, chain, keys_of
from medseg.bundle.recipe import ChannelWise, Intensity, Orient, Pointwise, Resample, Step, needs_whole
from medseg.errors import InvalidBundle

Transforms = Sequence[tuple[str, Config]]
"""Each with its place in the configuration."""


def parted(bundle: str, config: Config, image: str, channels: int) -> tuple[tuple[str, ...], Transforms, Transforms]:
    """The keys that are joined to `image`, what comes before, and what after; without keys all comes after.

    Raises InvalidBundle for a form that is not known.
    """
    transforms = list(chain(bundle, "preprocessing", config))
    joins = (n for n, (_, one) in enumerate(transforms) if one["_target_"] == "ConcatItemsd")
    places = [n for n in joins if transforms[n][1].get("name") == image]
    if not places:
        _check_loaded(bundle, transforms, image)
        return (), (), transforms
    key, join = transforms[places[0]]
    keys = keys_of(bundle, key, join)
    if len(places) > 1:
        raise InvalidBundle(bundle, transforms[places[1]][0], f"joins images to {image!r} again: expected it once")
    if join.get("dim", 0) != 0:
        raise InvalidBundle(bundle, f"{key}::dim", f"expected 0, the channels, found {join['dim']!r}")
    if len(set(keys)) != channels or len(keys) != channels:
        why = f"joins {', '.join(keys)}: expected an image for each of the network's {channels} input channels"
        raise InvalidBundle(bundle, f"{key}::keys", why)
    return keys, transforms[: places[0]], transforms[places[0] + 1 :]


def _check_loaded(bundle: str, transforms: Transforms, image: str) -> None:
    loads = [(key, keys_of(bundle, key, one)) for key, one in transforms if one["_target_"] == "LoadImaged"]
    if loads and not any(image in keys for _, keys in loads):
        key, keys = loads[0]
        why = f"loads {', '.join(keys)}: expected {image!r}, or a ConcatItemsd that joins them to it"
        raise InvalidBundle(bundle, f"{key}::keys", why)


def side_by_side(each: Sequence[Sequence[Step]]) -> tuple[Step, ...] | None:
    """The steps of every channel as those of one volume; None where channels are not moved alike."""
    moves = [[step for step in steps if isinstance(step, Orient | Resample)] for steps in each]
    if any(others != moves[0] for others in moves):
        return None
    between = [_between(steps) for steps in each]
    made: list[Step] = []
    for n, move in enumerate([*moves[0], None]):
        made += _intensities([parts[n] for parts in between])
        made += [move] if move is not None else []
    return tuple(made)


def _between(steps: Sequence[Step]) -> list[list[Pointwise]]:
    """Steps before, between and after those that move voxels."""
    at = [-1, *(n for n, step in enumerate(steps) if isinstance(step, Orient | Resample)), len(steps)]
    return [
        [step for step in steps[low + 1 : high] if not isinstance(step, Orient | Resample | ChannelWise)]
        for low, high in pairwise(at)
    ]


def _intensities(each: Sequence[Sequence[Pointwise]]) -> Iterator[Intensity]:
    """each: of every channel. The first that needs a whole volume stands beside those of the others."""
    first = [next((n for n, step in enumerate(steps) if needs_whole(step)), len(steps)) for steps in each]
    numbered = list(zip(each, first, strict=True))
    for part in (
        [steps[:n] for steps, n in numbered],
        [steps[n : n + 1] for steps, n in numbered],
        [steps[n + 1 :] for steps, n in numbered],
    ):
        for row in zip_longest(*part):
            yield _as_one(row)


def _as_one(row: tuple[Pointwise | None, ...]) -> Intensity:
    first = row[0]
    alike = first is not None and not needs_whole(first) and all(step == first for step in row)
    return first if alike and first is not None else ChannelWise(row)
