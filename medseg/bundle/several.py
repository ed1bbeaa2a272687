"""Whether a bundle looks at several series at once, by its descriptions alone: no weights are opened, nor is torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseg.bundle.load import INFERENCE, METADATA, formats
from medseg.bundle.nnunet.dataset import read_dataset
from medseg.bundle.nnunet.folder import DATASET, is_nnunet, trained_within
from medseg.bundle.nnunet.options import read_options
from medseg.bundle.parts import read_parts
from medseg.bundle.safe_config import SafeConfig, read_json
from medseg.bundle.schema import Reader
from medseg.errors import InvalidBundle


def needs_several(path: Path) -> bool:
    """Whether the bundle in a folder has `Bundle.channels`. Raises InvalidBundle."""
    root = path.resolve() if path.is_dir() else path.parent.resolve()  # DATASET/CONFIGURATION
    if not (root / METADATA).exists() and is_nnunet(root):
        return _channels_of(root, [root]) > 1
    about = Reader(root.name, METADATA, read_json(root.name, root, METADATA))
    own = about.reader("medseg")
    if "channels" in own:
        return True
    if "nnunet" in own:
        models = read_options(own.reader("nnunet"))
        folders = (*(part.folder for part in (*models.parts, *models.averaged)), models.folder)
        return _channels_of(root, [root / name for name in folders]) > 1
    inputs, outputs = formats(about)
    config = SafeConfig(root.name, root, read_json(root.name, root, INFERENCE))
    parts_of = read_parts(root.name, root, config, inputs, outputs, trust=False)
    return parts_of.in_channels // parts_of.recipe.window.slices > 1


def _channels_of(root: Path, folders: list[Path]) -> int:
    """How many channels models of nnU-Net have; those of one bundle have the same."""
    file = next(_datasets(folders), None)
    if file is None:
        raise InvalidBundle(root.name, DATASET, "no such file in a trained model of nnU-Net")
    relative = file.resolve().relative_to(root).as_posix()
    return len(read_dataset(Reader(root.name, relative, read_json(root.name, root, relative))).channels)


def _datasets(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (one / DATASET for one in (folder, *trained_within(folder)) if (one / DATASET).is_file())
