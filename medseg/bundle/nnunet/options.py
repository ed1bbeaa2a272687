"""What a bundle's metadata adds to an nnU-Net folder: the key "nnunet" of its "medseg"; each part of it may be absent.

{"folder": ".", "configuration": "3d_fullres", "folds": [0, 1], "checkpoint": "checkpoint_final",
 "step": 0.5, "gaussian": true, "mirroring": [0, 1, 2], "orientation": "LPS", "postprocessing": true,
 "previous": "first_stage"}
{"parts": [{"folder": "part_1", "labels": {"spleen": 1, "kidney": 2}}, ...], "orientation": "RAS"}
{"average": [{"folder": "2d"}, {"folder": "3d_fullres"}], "postprocessing": "postprocessing.json"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from medseg.bundle.nnunet.dataset import MOST_LABEL
from medseg.bundle.preparing import is_orientation
from medseg.bundle.schema import Reader

CHECKPOINT: Final = "checkpoint_final"
COMMON: Final = ("step", "gaussian", "mirroring", "orientation")
CHECKPOINTS: Final = (CHECKPOINT, "checkpoint_best", "checkpoint_latest")


@dataclass(frozen=True)
class Options:
    """None: as the folder has it.

    postprocessing: whether it is done, or a file that says which. mirrored: axes of a window; empty for none.
    previous: a cascade's first stage.
    """

    configuration: str | None = None
    folds: tuple[str, ...] | None = None
    checkpoint: str = CHECKPOINT
    step: float | None = None
    gaussian: bool | None = None
    mirrored: tuple[int, ...] | None = None
    orientation: str | None = None
    postprocessing: bool | str = True
    previous: PartOptions | None = None

    def for_first_stage(self) -> Options:
        """Those of a cascade's first stage, which is not cleaned up."""
        if self.previous is not None:
            return replace(self.previous.options, postprocessing=False)
        return replace(self, configuration=None, folds=None, checkpoint=CHECKPOINT, postprocessing=False)


@dataclass(frozen=True)
class PartOptions:
    """Another model that takes part. labels: number in the merged result by name or number there; None: all."""

    folder: str
    options: Options
    labels: Mapping[str, int] | None


@dataclass(frozen=True)
class Models:
    """What a bundle is made of: one folder, or parts whose labels are merged, or models that are averaged."""

    folder: str
    options: Options
    parts: tuple[PartOptions, ...]
    averaged: tuple[PartOptions, ...]


def read_options(given: Reader) -> Models:
    """Raises InvalidBundle."""
    several = [key for key in ("parts", "average") if key in given]
    if len(several) + ("folder" in given) > 1:
        why = f"expected one of folder, parts and average, each of these with folders of its own, found {several}"
        raise given.wrong(several[0], why)
    parts, averaged = (
        tuple(_part(part, given) for part in given.readers(key)) if key in given else () for key in ("parts", "average")
    )
    given.ignore("parts", "average")
    if averaged and (len(averaged) == 1 or any(part.labels is not None for part in averaged)):
        raise given.wrong("average", "expected several models, each with a folder, and all of the same labels")
    return Models(given.text("folder", "."), _options(given), parts, averaged)


def _part(part: Reader, whole: Reader) -> PartOptions:
    return PartOptions(part.text("folder"), _inheriting(part, whole), _labels(part))


def _previous(given: Reader) -> PartOptions | None:
    value = given.content.get("previous")
    given.ignore("previous")
    if value is None:
        return None
    stage = Reader(given.bundle, f"{given.key}::previous", {"folder": value} if isinstance(value, str) else value)
    return PartOptions(stage.text("folder"), _inheriting(stage, given), None)


def _inheriting(part: Reader, whole: Reader) -> Options:
    """Options of a model with what is said of all."""
    own = {key: value for key, value in part.content.items() if key not in ("folder", "labels")}
    common = {key: whole.content[key] for key in COMMON if key in whole.content}
    return _options(Reader(part.bundle, part.key, common | own))


def _labels(part: Reader) -> dict[str, int] | None:
    if "labels" not in part:
        return None
    given = part.reader("labels")
    labels = {name: given.integer(name) for name in given.content}
    for name, number in labels.items():
        if not 1 <= number <= MOST_LABEL:
            raise given.wrong(name, f"expected a label from 1 to {MOST_LABEL}, found {number}")
    return labels


def _options(given: Reader) -> Options:
    step = given.number("step") if "step" in given else None
    if step is not None and not 0 < step <= 1:
        raise given.wrong("step", f"expected a part of a window, above 0 and up to 1, found {step:g}")
    orientation = given.maybe_text("orientation")
    if orientation is not None and not is_orientation(orientation):
        raise given.wrong("orientation", f"expected three letters such as LPS, found {orientation!r:.80}")
    checkpoint = given.text("checkpoint", CHECKPOINT)
    if checkpoint not in CHECKPOINTS:
        raise given.wrong("checkpoint", f"expected {' or '.join(CHECKPOINTS)}, found {checkpoint!r:.80}")
    postprocessing = given.content.get("postprocessing", True)
    if not isinstance(postprocessing, bool | str):
        raise given.wrong("postprocessing", f"expected true, false or a file, found {postprocessing!r:.80}")
    options = Options(
        configuration=given.maybe_text("configuration"),
        folds=_folds(given),
        checkpoint=checkpoint,
        step=step,
        gaussian=given.flag("gaussian", True) if "gaussian" in given else None,
        mirrored=_mirrored(given),
        orientation=orientation,
        postprocessing=postprocessing,
        previous=_previous(given),
    )
    given.ignore("step", "gaussian", "postprocessing", "folds", "mirroring", "folder")
    given.done()
    return options


def _folds(given: Reader) -> tuple[str, ...] | None:
    """Numbers, or "all"."""
    value: Any = given.content.get("folds")
    if value is None:
        return None
    folds = value if isinstance(value, list) else [value]
    right = all((type(fold) is int and 0 <= fold < 1000) or fold == "all" for fold in folds)
    if not folds or not right or len(set(folds)) < len(folds):
        raise given.wrong("folds", f"expected numbers of folds, each once, or all, found {value!r:.80}")
    return tuple(map(str, folds))


def _mirrored(given: Reader) -> tuple[int, ...] | None:
    value = given.content.get("mirroring")
    if value is None or value is True:
        return None
    if value is False:
        return ()
    axes = given.integers("mirroring", None)
    if len(set(axes)) < len(axes) or not all(0 <= axis <= 2 for axis in axes):
        raise given.wrong("mirroring", f"expected axes of a window, each once, true or false, found {value!r:.80}")
    return axes
