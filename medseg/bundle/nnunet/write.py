"""A bundle of our own made from folders of nnU-Net: weights as safetensors, and metadata for a person to complete.

NAME/configs/metadata.json   segments with proposed codes; folds, step, mirroring, orientation
NAME/plans.json  dataset.json  fold_0/checkpoint_final.safetensors ...      of several folders: part_1/ part_2/ ...
NAME/first_stage/            of a cascade
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from medseg.bundle.bundle import Bundle, Segment
from medseg.bundle.load import METADATA, load_bundle
from medseg.bundle.network import read_weights
from medseg.bundle.nnunet.folder import DATASET, PLANS
from medseg.bundle.nnunet.postprocessing import FILE, find_postprocessing
from medseg.bundle.proposed import proposed
from medseg.errors import UsageError

FIRST_STAGE: Final = "first_stage"
CARD: Final = """# {name}

{description}

Made from nnU-Net's {models}. Before use, check in `configs/metadata.json` what was only proposed:
the codes of the segments, by their names; the modality, by the channels'; and the orientation, which is the axes
(i, j, k) of the arrays that the network was trained on, such as "RAS". null takes DICOM as it lies: "LPS" if axial.

Not a medical device; for research.
"""


def write_bundle(folder: Path, sources: Sequence[Path]) -> Bundle:
    """Write a bundle; of several sources their labels are merged, numbered one after the other.

    Raises UsageError where the folder is there already, and what `load_bundle` raises.
    """
    if folder.exists():
        raise UsageError(f"{folder} is there already: choose another name")
    made = [load_bundle(source) for source in sources]
    for source, bundle in zip(sources, made, strict=True):
        if bundle.nnunet is None or bundle.parts or bundle.averaged:
            raise UsageError(f"{source}: expected the folder of one model of nnU-Net")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        root = staging / folder.name  # a bundle is called as its folder is
        parts = [f"part_{number}" for number in range(1, len(made) + 1)] if len(made) > 1 else ["."]
        options = [_write_model(root, part, bundle) for part, bundle in zip(parts, made, strict=True)]
        _write_metadata(root, made, parts, options)
        load_bundle(root)
        root.replace(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(folder)


def _write_model(root: Path, place: str, bundle: Bundle) -> dict[str, Any]:
    """Plans, labels and weights of one model; what the metadata is to say of it."""
    model, target = bundle.nnunet, root / place
    assert model is not None
    source = bundle.weights.parent.parent
    files = (bundle.weights, *bundle.members)
    folds = [file.parent.name.removeprefix("fold_") for file in files]
    for file in files:
        (target / file.parent.name).mkdir(parents=True)
        tensors: dict[tuple[int, tuple[int, ...]], tuple[str, Tensor]] = {}
        for name, tensor in read_weights(bundle, file).items():
            tensors.setdefault((tensor.data_ptr(), tuple(tensor.shape)), (name, tensor))
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.values()},
            target / file.parent.name / f"{file.stem}.safetensors",
        )
    for name in (PLANS, DATASET):
        shutil.copyfile(source / name, target / name)
    if model.cleanup:
        chosen, _ = find_postprocessing(source, "", tuple(folds))
        assert chosen is not None
        shutil.copyfile(source / chosen, target / FILE)
    licence = source / "LICENSE"
    if licence.is_file() and not licence.is_symlink() and not (root / "LICENSE").exists():
        shutil.copyfile(licence, root / "LICENSE")
    options: dict[str, Any] = {
        "configuration": model.configuration,
        "folds": [int(fold) if fold.isdigit() else fold for fold in folds],
        "checkpoint": bundle.weights.stem,
        "step": model.step,
        "gaussian": model.gaussian,
        "mirroring": list(bundle.flips),
        "orientation": model.orientation,
        "postprocessing": bool(model.cleanup),
    }
    if bundle.previous is not None:
        first = f"{place}/{FIRST_STAGE}".removeprefix("./")
        options["previous"] = {"folder": first, **_write_model(root, first, bundle.previous)}
    return options


def _write_metadata(
    root: Path, made: Sequence[Bundle], parts: Sequence[str], options: Sequence[dict[str, Any]]
) -> None:
    first = made[0]
    nnunet: dict[str, Any] = options[0]
    segments, taken = [_segment(segment, segment.number) for segment in first.segments], first.segments[-1].number
    if len(made) > 1:
        nnunet = {"parts": []}
        segments, taken = [], 0
        for bundle, part, option in zip(made, parts, options, strict=True):
            numbers = {segment.number: taken + n for n, segment in enumerate(bundle.segments, 1)}
            labels = {str(own): number for own, number in numbers.items()}
            nnunet["parts"].append({"folder": part, "labels": labels, **option})
            segments += [_segment(segment, numbers[segment.number]) for segment in bundle.segments]
            taken += len(numbers)
    description = first.description or f"{', '.join(segment['label'] for segment in segments)}"
    content = {
        "version": "0.1.0",
        "description": description,
        **({"license": first.licence} if first.licence else {}),
        "medseg": {"expects": {"modality": list(first.expects.modality)}, "segments": segments, "nnunet": nnunet},
    }
    (root / METADATA).parent.mkdir()
    (root / METADATA).write_text(json.dumps(content, indent=4) + "\n", "utf-8")
    (root / "docs").mkdir()
    models = " and ".join(bundle.name for bundle in made)
    (root / "docs/README.md").write_text(CARD.format(name=root.name, description=description, models=models), "utf-8")


def _segment(segment: Segment, number: int) -> dict[str, Any]:
    return {"number": number, "label": segment.label, **proposed(segment.label)}
