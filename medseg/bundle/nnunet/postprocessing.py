"""postprocessing.json: what is cleaned up afterwards, as nnU-Net found it to help; the pickle beside it is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from medseg.bundle.nnunet.dataset import MOST_VALUE
from medseg.bundle.safe_config import read_json
from medseg.bundle.schema import Reader

FILE: Final = "postprocessing.json"
PICKLE: Final = "postprocessing.pkl"
FOLDERS: Final = "crossval_results_folds_"
KEEP_LARGEST: Final = "remove_all_but_largest_component_from_segmentation"
MOST_STEPS: Final = 512


def find_postprocessing(root: Path, folder: str, folds: tuple[str, ...]) -> tuple[str | None, bool]:
    """The file of a trained-model folder, from the root on, and whether there is a pickle alone.

    Of several that for just these folds, else none, since nobody says which was meant.
    """
    base = root / folder
    places = [base, *sorted(place for place in base.glob(f"{FOLDERS}*") if place.is_dir())]
    files = [place / FILE for place in places if (place / FILE).is_file()]
    mine = [file for file in files if file.parent.name == FOLDERS + "_".join(folds)]
    chosen = mine or (files if len(files) == 1 else [])
    unread = not chosen and (bool(files) or any((place / PICKLE).is_file() for place in places))
    return (chosen[0].relative_to(root).as_posix() if chosen else None), unread


def read_postprocessing(bundle: str, root: Path, file: str) -> tuple[tuple[int, ...], ...]:
    """Labels whose union keeps its largest piece alone, one after the other. Raises InvalidBundle."""
    about = Reader(bundle, file, read_json(bundle, root, file))
    names, arguments = about.texts("postprocessing_fns"), list(about.readers("postprocessing_kwargs"))
    if len(names) != len(arguments) or len(names) > MOST_STEPS:
        raise about.wrong("postprocessing_kwargs", f"expected one for each of {len(names)} functions")
    for name in names:
        if name != KEEP_LARGEST:
            raise about.wrong("postprocessing_fns", f"{name!r:.80} is not known: expected {KEEP_LARGEST}")
    steps = []
    for given in arguments:
        labels = _flat(given.content.get("labels_or_regions"))
        if not labels or not all(type(label) is int and 0 < label <= MOST_VALUE for label in labels):
            raise given.wrong("labels_or_regions", "expected labels, or regions of labels")
        if given.integer("background_label", 0) != 0:
            raise given.wrong("background_label", "expected 0")
        given.ignore("labels_or_regions")
        given.done()
        steps.append(tuple(dict.fromkeys(labels)))
    return tuple(steps)


def _flat(value: Any) -> list[Any]:
    return [label for item in value for label in _flat(item)] if isinstance(value, list) else [value]
