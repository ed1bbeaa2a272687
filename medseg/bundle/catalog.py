"""Which bundles there are, and which of them fits a series.

Bundles are looked for in the folders of MEDSEG_BUNDLES, in other packages (entry points "medseg.bundles", each naming
a package that holds bundles), beside the package in a checkout, and in the installed wheel; the first of a name wins.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

import medseg
from medseg.bundle.bundle import Bundle, Expects
from medseg.bundle.load import INFERENCE, METADATA, load_bundle
from medseg.bundle.nnunet.folder import is_nnunet, is_trained
from medseg.bundle.seen import facts_of
from medseg.conditions.findings import ConditionFinding, ConditionVerdict, findings_of
from medseg.conditions.patterns import Wildcard, body_part
from medseg.conditions.subjects import BODY_PART
from medseg.conditions.terms import Condition
from medseg.dicom.series import Series, Stack
from medseg.errors import AmbiguousBundle, BundleError, DoesNotFit, NoSuchBundle

logger = logging.getLogger(__name__)

VARIABLE: Final = "MEDSEG_BUNDLES"
GROUP: Final = "medseg.bundles"
AXES: Final = ("left-right", "front-back", "head-foot")


def bundle_folders() -> dict[str, Path]:
    """Folder of every bundle that can be named, by name."""
    folders: dict[str, Path] = {}
    for place in _places():
        candidates = [place, *sorted(place.iterdir())] if place.is_dir() else []
        for folder in candidates:
            if _is_bundle(folder, within=folder is not place):
                folders.setdefault(folder.resolve().name, folder)
    return folders


def _is_bundle(folder: Path, *, within: bool) -> bool:
    """within: it lies in one of the places; a place that holds nnU-Net's folders is no bundle itself."""
    known = (folder / METADATA).is_file() or (folder / INFERENCE).is_file()
    return known or (is_nnunet(folder) if within else is_trained(folder))


def _places() -> Iterator[Path]:
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if folder:
            yield Path(folder)
    for entry in entry_points(group=GROUP):
        spec = find_spec(entry.module)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            yield Path(folder)
    package = Path(medseg.__file__).parent
    yield package.parent / "bundles"
    yield package / "_bundles"


def installed() -> list[Bundle]:
    """Every bundle that can be named and loaded; one that is broken is logged and left out."""
    bundles = []
    for name, folder in bundle_folders().items():
        try:
            bundles.append(load_bundle(folder))
        except BundleError as error:
            logger.warning("bundle %s is left out: %s", name, error)
    return bundles


def find_bundle(name: str, *, trust: bool = False, trained: bool = True) -> Bundle:
    """The bundle of that name, or in that folder; `load_bundle` says more. Raises NoSuchBundle, InvalidBundle.

    DATASET/CONFIGURATION is one of the models in the folder of a dataset of nnU-Net.
    """
    return load_bundle(find_folder(name), trust=trust, trained=trained)


def find_folder(name: str) -> Path:
    """The folder of the bundle of that name, or the one that is named. Raises NoSuchBundle."""
    folders = bundle_folders()
    if name in folders:
        return folders[name]
    if Path(name).is_dir() or ("/" in name and is_nnunet(Path(name).parent)):
        return Path(name)
    raise NoSuchBundle(name, tuple(folders))


def choose(stack: Stack, bundles: Sequence[Bundle], *, whole: bool = True) -> Bundle:
    """The one bundle for a stack: the only one that fits, or the only default among several.

    whole: see `fits`.
    Raises DoesNotFit with the reasons of every bundle, AmbiguousBundle where the choice is the user's.
    """
    reasons = {bundle.name: fits(stack, bundle, whole=whole) for bundle in bundles}
    fitting = [bundle for bundle in bundles if not reasons[bundle.name]]
    defaults = [one for one in fitting if one.default and (not one.described or hinted(stack.series, one.expects))]
    for candidates in (fitting, defaults):
        if len(candidates) == 1:
            return candidates[0]
    uid = stack.series.series_uid
    if fitting:
        raise AmbiguousBundle(uid, [bundle.name for bundle in fitting])
    if len(bundles) == 1:
        raise DoesNotFit(uid, bundles[0].name, reasons[bundles[0].name])
    why = [f"{name}: {', '.join(found)}" for name, found in reasons.items()] or ["no bundle is installed"]
    raise DoesNotFit(uid, " or ".join(reasons) or "(none)", why)


def fits(stack: Stack, bundle: Bundle, *, hints: bool = True, whole: bool = True) -> tuple[str, ...]:
    """Why the bundle was not made for this stack; empty where it fits. What the series does not say counts as fitting.

    hints: also compare the series description, which only guides a choice and never overrules the user's.
    whole: False where more slices may come: then only what no other slice could change is a reason.
    """
    expects, series = bundle.expects, stack.series
    reasons: list[str] = []
    if expects.modality and series.modality and series.modality.upper() not in expects.modality:
        reasons.append(f"modality {series.modality}, expected {' or '.join(expects.modality)}")
    conditions = _found(stack, expects, whole=whole)
    reasons += [one.short for one in conditions if one.verdict is ConditionVerdict.FAILS]
    if whole and len(stack.slices) < expects.min_slices:
        reasons.append(f"{len(stack.slices)} slices, expected at least {expects.min_slices}")
    grows, step_mm = (-1, 0.0) if whole else (across(stack), stack.spacing_mm[0])
    for number, (found, (least, most)) in enumerate(zip(extent_mm(stack), expects.fov_mm or (), strict=False)):
        axis = AXES[number]
        # Slices that are yet to come may lie between these, and then each is thinner than the step between them now.
        if (number != grows and found < least) or (found - step_mm if number == grows else found) > most:
            reasons.append(f"field of view {found:.0f} mm {axis}, expected {least:g} to {most:g} mm")
    if hints and hinted(series, expects) is False:
        reasons.append(f"series description {series.description!r}, expected {expects.series_description}")
    return tuple(reasons)


def not_known(stack: Stack, bundle: Bundle) -> tuple[str, ...]:
    """What a bundle expects and the series does not say: it neither fits by it nor is barred."""
    expects, found = bundle.expects, _found(stack, bundle.expects, whole=True)
    modality = ("modality not known",) if expects.modality and not stack.series.modality else ()
    return (*modality, *(one.short for one in found if one.verdict is ConditionVerdict.UNKNOWN))


def _found(stack: Stack, expects: Expects, *, whole: bool) -> tuple[ConditionFinding, ...]:
    parts = tuple(body_part(text, Wildcard) for text in expects.body_part)
    named = (Condition("body part", BODY_PART, parts),) if parts else ()
    return findings_of((*named, *expects.when), facts_of(stack, whole=whole))


def hinted(series: Series, expects: Expects) -> bool | None:
    """Whether the series description is one the bundle names (`*` globs, case ignored); None where either is silent."""
    if expects.series_description is None or not series.description.strip():
        return None
    return fnmatchcase(series.description.strip().lower(), expects.series_description.lower())


def extent_mm(stack: Stack) -> tuple[float, float, float]:
    """Extent of the stack along the patient's x, y and z axes (PS3.3 C.7.6.2.1.1): of the grid axis nearest to each.

    Whole voxels count, so 20 slices 2 mm apart are 40 mm.
    """
    best = grid_axes(stack)
    _, rows, columns = stack.shape
    planes = float(stack.coordinates.max() - stack.coordinates.min()) + 1
    sizes = [count * step for count, step in zip((planes, rows, columns), stack.spacing_mm, strict=True)]
    return sizes[best[0]], sizes[best[1]], sizes[best[2]]


def across(stack: Stack) -> int:
    """Which of `AXES` the slices follow each other along."""
    return grid_axes(stack).index(0)


def grid_axes(stack: Stack) -> tuple[int, int, int]:
    """The grid axis nearest to each patient axis: the assignment whose directions agree best in sum."""
    directions = np.abs(stack.affine[:3, :3] / np.linalg.norm(stack.affine[:3, :3], axis=0))
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(orders, key=lambda order: sum(directions[axis, grid] for axis, grid in enumerate(order)))
