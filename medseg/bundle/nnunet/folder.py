"""Where a model's files lie: trained-model folders, datasets of several, folds, the first stage of a cascade.

Dataset001_Liver/                                     a dataset: the configuration that is named, or the best
  inference_information.json                          which one is the best, or the mean of which two
  ensembles/ensemble___...___.../postprocessing.json  of such a mean
  nnUNetTrainer__nnUNetPlans__3d_fullres/             a trained model; its name decides nothing
    plans.json  dataset.json
    fold_0/checkpoint_final.pth  fold_1/ ...          or .safetensors, in bundles of our own
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medseg.bundle.nnunet.options import Options
from medseg.bundle.nnunet.plans import configuration
from medseg.bundle.safe_config import inside, read_json
from medseg.bundle.schema import Reader
from medseg.errors import InvalidBundle

PLANS: Final = "plans.json"
DATASET: Final = "dataset.json"
VERSION_1: Final = "plans.pkl"
BEST: Final = "inference_information.json"
ENSEMBLES: Final = "ensembles"  # a folder for each in which averages of models were tried
ENDINGS: Final = (".pth", ".safetensors")
MOST_FOLDERS: Final = 200  # that are looked at
_FOLD: Final = re.compile(r"fold_(\d{1,3})")
_BY_NNUNET: Final = re.compile(r"(.+)__(.+)__(.+)")  # trainer, plans, configuration


@dataclass(frozen=True, eq=False)
class TrainedFolder:
    """A trained model. folder, files: from the root on. folds: their names. mirrored: axes of a window."""

    bundle: str
    root: Path
    folder: str
    plans: Reader
    dataset: Reader
    folds: tuple[str, ...]
    files: tuple[str, ...]
    configuration: str
    mirrored: tuple[int, ...]


def is_trained(folder: Path) -> bool:
    """Whether it looks like a trained-model folder, also of nnU-Net version 1, which is refused by name then."""
    return any((folder / file).is_file() for file in (PLANS, VERSION_1))


def is_nnunet(folder: Path) -> bool:
    """Whether it looks like a folder of nnU-Net: of a trained model, or of a dataset with some."""
    return is_trained(folder) or any(True for _ in trained_within(folder))


def read_trained(bundle: str, root: Path, folder: str, options: Options) -> TrainedFolder:
    """The trained model in a folder. root: resolved. Raises InvalidBundle."""
    if not (root / folder).is_dir():
        raise InvalidBundle(bundle, folder, "no such folder in the bundle")
    if is_trained(root / folder):
        return _trained(bundle, root, folder, options)
    return _of_dataset(bundle, root, folder, options)


def _trained(bundle: str, root: Path, folder: str, options: Options) -> TrainedFolder:
    plans, dataset = (_path(folder, file) for file in (PLANS, DATASET))
    if not (root / plans).is_file() and (root / folder / VERSION_1).is_file():
        why = "plans of nnU-Net version 1, a pickle, are not read: train with version 2"
        raise InvalidBundle(bundle, _path(folder, VERSION_1), why)
    read = [Reader(bundle, file, read_json(bundle, root, file)) for file in (plans, dataset)]
    folds, files = _folds(bundle, root, folder, options)
    trained_for, mirrored = options.configuration, options.mirrored
    if files[0].endswith(ENDINGS[0]):
        from medseg.bundle.nnunet.checkpoint import read_checkpoint  # with torch, which descriptions do without

        first = read_checkpoint(bundle, inside(bundle, root, files[0]), files[0])
        if trained_for not in (None, first.configuration):
            why = f"trained for the configuration {first.configuration:.80}, but {trained_for} is asked for"
            raise InvalidBundle(bundle, files[0], why)
        trained_for = first.configuration
        mirrored = first.mirrored if mirrored is None else mirrored
    if trained_for is None:
        raise InvalidBundle(bundle, files[0], "nothing says for which configuration it was trained: name it")
    return TrainedFolder(bundle, root, folder, read[0], read[1], folds, files, trained_for, mirrored or ())


def _folds(bundle: str, root: Path, folder: str, options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the folds and their checkpoints: those asked for, else all with a number."""
    there = [place.name for place in (root / folder).iterdir() if place.is_dir() and _FOLD.fullmatch(place.name)]
    numbers = sorted((name.removeprefix("fold_") for name in there), key=int)
    folds = options.folds or tuple(numbers) or (("all",) if (root / folder / "fold_all").is_dir() else ())
    if not folds:
        why = f"no fold of a trained model: expected {_path(folder, f'fold_0/{options.checkpoint}.pth')}"
        raise InvalidBundle(bundle, folder or ".", why)
    files = []
    for fold in folds:
        names = [_path(folder, f"fold_{fold}/{options.checkpoint}{ending}") for ending in ENDINGS]
        existing = [name for name in names if (root / name).exists()]
        if not existing:
            why = "no such checkpoint: add it, take the fold's folder away, or name the folds that are meant"
            raise InvalidBundle(bundle, names[0], why)
        if len(existing) > 1:
            raise InvalidBundle(bundle, names[0], f"{existing[1]} lies beside it: remove the one that is not meant")
        files.append(existing[0])
    return folds, tuple(files)


def read_best_average(bundle: str, root: Path, folder: str, options: Options) -> tuple[list[TrainedFolder], str]:
    """Where nnU-Net found the average of several models of a dataset to be the best: these, and where it says how their
    average is cleaned up, from the root on; empty where it did not, or one is named. Raises InvalidBundle."""
    place = root / folder
    if options.configuration is not None or not place.is_dir() or is_trained(place) or not (place / BEST).is_file():
        return [], ""
    best = _the_best(bundle, root, folder, _of_each(bundle, root, folder, options))
    if len(best) < 2:
        return [], ""
    names = "___".join(Path(model.folder).name for model in best)
    return best, _path(folder, f"{ENSEMBLES}/ensemble___{names}___{'_'.join(best[0].folds)}")


def _of_each(bundle: str, root: Path, folder: str, options: Options) -> list[TrainedFolder]:
    each = replace(options, configuration=None)
    return [_trained(bundle, root, _path(folder, place.name), each) for place in trained_within(root / folder)]


def _of_dataset(bundle: str, root: Path, folder: str, options: Options) -> TrainedFolder:
    """The model that is meant by the folder of a dataset."""
    models = _of_each(bundle, root, folder, options)
    wanted = options.configuration
    if wanted is None:
        models = _the_best(bundle, root, folder, models) or models
    else:
        models = [model for model in models if model.configuration == wanted]
    stages = {_previous_stage(model) for model in models}
    last = [model for model in models if len(models) == 1 or model.configuration not in stages]
    if len(last) != 1:
        named = ", ".join(f"{Path(model.folder).name} ({model.configuration})" for model in last or models) or "none"
        why = f"expected one trained model{f' of {wanted}' if wanted else ''}, found {named}: name the folder of one"
        raise InvalidBundle(bundle, folder or ".", why)
    return last[0]


def trained_within(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    with suppress(OSError):
        for place in sorted(folder.iterdir())[:MOST_FOLDERS]:
            if place.is_dir() and is_trained(place) and (place / DATASET).is_file():
                yield place


def _the_best(bundle: str, root: Path, folder: str, models: Sequence[TrainedFolder]) -> list[TrainedFolder]:
    """The model that nnU-Net found to be the best, or the several whose average is; empty where it was not asked."""
    file = _path(folder, BEST)
    if not (root / file).is_file():
        return []
    best = Reader(bundle, file, read_json(bundle, root, file)).reader("best_model_or_ensemble")
    names = [
        "__".join(model.text(key) for key in ("trainer", "plans_identifier", "configuration"))
        for model in best.readers("selected_model_or_models")
    ]
    there = {Path(model.folder).name: model for model in models}
    chosen = [there[name] for name in names if name in there]
    if not names or len(chosen) < len(names):
        raise InvalidBundle(bundle, file, f"the best is {' and '.join(names):.200}, and not all of that is there")
    return chosen


def _previous_stage(model: TrainedFolder) -> Any:
    return configuration(model.plans, model.configuration).content.get("previous_stage")


def find_previous(trained: TrainedFolder, stage: str, options: Options) -> TrainedFolder:
    """The first stage of a cascade: the folder that is named, else the one beside with the same plans.

    Raises InvalidBundle where there is none, or several.
    """
    bundle, own = trained.bundle, trained.root / trained.folder
    earlier = options.for_first_stage()
    if options.previous is not None:
        folder = options.previous.folder
        first = read_trained(bundle, trained.root, folder, earlier)
        if first.configuration != stage:
            why = f"a model of {first.configuration}, expected {stage}, the first stage of {trained.configuration}"
            raise InvalidBundle(bundle, folder or ".", why)
        return first
    candidates = []
    for place in trained_within(own.parent):
        if place.resolve() == own.resolve():
            continue
        with suppress(InvalidBundle):  # what else lies there is another model's matter
            first = _trained(bundle, own.parent.resolve(), place.name, earlier)
            if first.configuration == stage and _same_plans(first, trained):
                candidates.append(first)
    named = [candidate for candidate in candidates if candidate.folder == _renamed(own.name, stage)]
    candidates = named or candidates
    if len(candidates) != 1:
        listed = ", ".join(candidate.folder for candidate in candidates) or "none"
        why = f"{trained.configuration} needs one model of its first stage, {stage}, in a folder beside, found {listed}"
        raise InvalidBundle(bundle, trained.folder or own.name, why)
    return candidates[0]


def _same_plans(model: TrainedFolder, other: TrainedFolder) -> bool:
    keys = ("dataset_name", "plans_name")
    return all(model.plans.content.get(key) == other.plans.content.get(key) for key in keys)


def _renamed(folder: str, stage: str) -> str:
    """What nnU-Net calls the folder of another configuration."""
    parts = _BY_NNUNET.fullmatch(folder)
    return f"{parts[1]}__{parts[2]}__{stage}" if parts else ""


def model_name(root: Path, trained: TrainedFolder) -> str:
    """A name for a person: the folder's, or the dataset's and the configuration's where nnU-Net named the folder."""
    dataset = trained.plans.content.get("dataset_name")
    if isinstance(dataset, str) and dataset.strip() and (_BY_NNUNET.fullmatch(root.name) or trained.folder):
        return f"{dataset.strip()}_{trained.configuration}"
    return root.name


def _path(folder: str, file: str) -> str:
    return file if folder in ("", ".") else f"{folder}/{file}"
