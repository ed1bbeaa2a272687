"""The region of a bundle, from the metadata's "medseg" key, and the bundle that finds it.

"region": {"first_pass": {"bundle": "whole_head", "labels": [1, 2]}, "mode": "box", "margin_mm": 10, ...}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from medseg.allowed import is_number, one_of
from medseg.bundle.bundle import Bundle
from medseg.bundle.region import (
    ByBody,
    ByBundle,
    ByThreshold,
    FirstPass,
    LookMode,
    Mirror,
    NotFound,
    Region,
    Statistics,
    View,
)
from medseg.bundle.schema import ABSENT, Reader
from medseg.errors import InvalidBundle

MOST_LABEL: Final = 255
SPACING_MM: Final = 4.0
BODY: Final = "body"
KEY: Final = "medseg::region"
_Choice = TypeVar("_Choice", bound=StrEnum)


def read_region(own: Reader, labels: int) -> Region | None:
    """The region that the metadata asks for, if it does. labels: of the network, 1 to so many. Raises InvalidBundle."""
    if "region" not in own:
        own.ignore("region")
        return None
    entry = own.reader("region")
    mode = _choice(entry, LookMode, "mode", LookMode.BOX)
    region = Region(
        first_pass=_first_pass(entry),
        mode=mode,
        margin_mm=_along_axes(entry, "margin_mm", 0),
        size_mm=_size(entry),
        min_volume_ml=_least(entry, "min_volume_ml", 0.0),
        most=_most(entry),
        statistics=_choice(entry, Statistics, "statistics", _usual(mode)),
        not_found=_choice(entry, NotFound, "not_found", NotFound.REFUSE),
        views=tuple(_view(one, labels) for one in entry.readers("views")) if "views" in entry else (),
    )
    entry.ignore("views")
    entry.done()
    seen = [view.label for view in region.views]
    if len(set(seen)) < len(seen):
        raise entry.wrong("views", f"expected one view for each label of the first pass, found {seen}")
    if mode is LookMode.WINDOWS and (region.views or region.statistics is Statistics.BOX):
        key = "views" if region.views else "statistics"
        raise entry.wrong(key, 'windows of the image see it as a whole: for this the mode must be "box"')
    return region


def most_label(region: Region | None, labels: int) -> int:
    """The highest number that a label has in a result. labels: of the network."""
    views = region.views if region is not None else ()
    return max((number for view in views for number in view.labels.values()), default=labels)


def _usual(mode: LookMode) -> Statistics:
    return Statistics.IMAGE if mode is LookMode.WINDOWS else Statistics.BOX


def _choice(entry: Reader, choices: type[_Choice], name: str, default: _Choice) -> _Choice:
    return entry.read(name, one_of(choices), default.value)


def _least(entry: Reader, name: str, default: float) -> float:
    number = entry.number(name, default)
    if number < 0:
        raise entry.wrong(name, f"expected a number that is not negative, found {number:g}")
    return number


def _size(entry: Reader) -> tuple[float, float, float] | None:
    if "size_mm" not in entry:
        entry.ignore("size_mm")
        return None
    size = _along_axes(entry, "size_mm")
    if "margin_mm" in entry:
        raise entry.wrong("size_mm", "a box has a size or a margin: expected one of them, found both")
    if not all(size):
        raise entry.wrong("size_mm", f"expected lengths above 0, found {list(size)}")
    return size


def _along_axes(entry: Reader, name: str, default: Any = ABSENT) -> tuple[float, float, float]:
    value: Any = entry.value(name, default)
    each = value if isinstance(value, list) else [value] * 3
    if len(each) != 3 or not all(is_number(one) and one >= 0 for one in each):
        axes = "left-right, front-back, head-foot"
        raise entry.wrong(name, f"expected mm, one number or three ({axes}), found {value!r:.80}")
    across, deep, along = (float(one) for one in each)
    return across, deep, along


def _most(entry: Reader) -> int | None:
    if "most" not in entry:
        entry.ignore("most")
        return None
    most = entry.integer("most")
    if most < 1:
        raise entry.wrong("most", f"expected how many pieces of each label are looked at, found {most}")
    return most


def _first_pass(entry: Reader) -> FirstPass:
    value = entry.value("first_pass")
    spacing = _least(entry, "spacing_mm", SPACING_MM)
    if spacing <= 0:
        raise entry.wrong("spacing_mm", "expected a distance of voxels in mm")
    if value == BODY:
        return ByBody(spacing)
    if not isinstance(value, Mapping) or ("bundle" in value) == ("threshold" in value):
        why = f'expected "{BODY}", {{"threshold": [least, most]}} or {{"bundle": NAME}}, found {value!r:.80}'
        raise entry.wrong("first_pass", why)
    first = Reader(entry.bundle, f"{entry.key}::first_pass", value)
    if "threshold" in value:
        made: FirstPass = _threshold(first, spacing)
    elif "spacing_mm" in entry:
        raise entry.wrong("spacing_mm", "another bundle has a spacing of its own")
    else:
        labels = first.integers("labels", None, ())
        if not all(1 <= label <= MOST_LABEL for label in labels):
            raise first.wrong("labels", f"expected numbers of labels, 1 to {MOST_LABEL}, found {list(labels)}")
        made = ByBundle(first.text("bundle"), labels)
    first.done()
    return made


def _threshold(first: Reader, spacing_mm: float) -> ByThreshold:
    value = first.value("threshold")
    ends = value if isinstance(value, list) and len(value) == 2 else (None, None)
    known = [end for end in ends if end is not None]
    if not known or not all(is_number(end) for end in known) or known != sorted(known):
        why = f"expected [least, most] in the image's values, one of them may be null, found {value!r:.80}"
        raise first.wrong("threshold", why)
    least, most = (None if end is None else float(end) for end in ends)
    return ByThreshold(least, most, spacing_mm)


def _view(entry: Reader, labels: int) -> View:
    given = entry.reader("labels").content
    numbers: dict[int, int] = {}
    for key, number in given.items():
        whole = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST_LABEL
        if not (key.isascii() and key.isdigit() and 1 <= int(key) <= labels and whole):
            why = (
                f"expected labels of the network (1 to {labels}) and their numbers in the result, found {dict(given)!r}"
            )
            raise entry.wrong("labels", why)
        numbers[int(key)] = number
    if len(set(numbers.values())) < len(numbers):
        raise entry.wrong("labels", f"expected different numbers in the result, found {dict(given)!r}")
    mirror = entry.texts("mirror")
    if not set(mirror) <= set(Mirror) or len(set(mirror)) < len(mirror):
        raise entry.wrong("mirror", f"expected {', '.join(Mirror)}, each once, found {list(mirror)}")
    label = entry.integer("label")
    entry.done()
    return View(label, tuple(map(Mirror, mirror)), numbers or {number: number for number in range(1, labels + 1)})


def with_first_pass(bundle: Bundle, load: Callable[[Path], Bundle]) -> Bundle:
    """The bundle with the one that finds its region, where another does. load: makes a bundle of a folder.

    Its configuration and weights count in the digest. Raises InvalidBundle.
    """
    region = bundle.region
    if region is None:
        return bundle
    if region.mode is LookMode.WINDOWS and (bundle.nnunet is not None or bundle.recipe.fallback is not None):
        why = bundle.recipe.fallback or "it is nnU-Net's"
        raise InvalidBundle(bundle.name, f"{KEY}::mode", f'windows cannot run by themselves ({why}): expected "box"')
    if region.statistics is Statistics.IMAGE and region.mode is LookMode.BOX and not _settles(bundle):
        why = bundle.recipe.fallback or "it is nnU-Net's"
        raise InvalidBundle(
            bundle.name, f"{KEY}::statistics", f'those of the image are not known ({why}): expected "box"'
        )
    if not isinstance(region.first_pass, ByBundle):
        return bundle
    first = load(_folder(bundle, region.first_pass.name))
    key = f"{KEY}::first_pass"
    if first.region is not None:
        raise InvalidBundle(bundle.name, key, f"bundle {first.name} has a region itself: expected one for whole images")
    if first.image_channels not in (1, bundle.image_channels):
        why = f"bundle {first.name} has {first.image_channels} channels: expected 1, or {bundle.image_channels}"
        raise InvalidBundle(bundle.name, key, why)
    known = {segment.number for segment in first.segments}
    asked = {*region.first_pass.labels, *(view.label for view in region.views)}
    if not asked <= known:
        why = f"bundle {first.name} has the labels {sorted(known)}, not {sorted(asked - known)}"
        raise InvalidBundle(bundle.name, key, why)
    digest = hashlib.sha256(f"{bundle.digest}\n{first.digest}\n".encode()).hexdigest()
    return replace(bundle, first_pass=first, digest=digest)


def _settles(bundle: Bundle) -> bool:
    """Whether what the recipe must know of the whole image can be found without windows."""
    return bundle.nnunet is None and bundle.recipe.fallback is None


def _folder(bundle: Bundle, name: str) -> Path:
    """The folder of a first pass: within the bundle, else the one that can be named so."""
    from medseg.bundle.catalog import bundle_folders  # which loads bundles itself

    parts = PurePosixPath(name).parts
    leads_out = "\\" in name or ".." in parts or PurePosixPath(name).is_absolute() or name in ("", ".")
    within = (bundle.path / name).resolve()
    if leads_out or not within.is_relative_to(bundle.path):
        why = f"{name!r} leads out of the bundle: expected a folder within it, or the name of a bundle"
        raise InvalidBundle(bundle.name, f"{KEY}::first_pass", why)
    if within.is_dir():
        return within
    named = bundle_folders().get(name) if len(parts) == 1 else None
    if named is None:
        why = f"no first pass {name!r}: there is no such folder in the bundle, and no bundle of that name"
        raise InvalidBundle(bundle.name, f"{KEY}::first_pass", why)
    return named
