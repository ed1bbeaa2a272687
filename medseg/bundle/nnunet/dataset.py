"""dataset.json: channels and labels (nnU-Net's documentation/dataset_format.md, region_based_training.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from medseg.bundle.channels import MODALITIES
from medseg.bundle.nnunet.model import Labels
from medseg.bundle.schema import Reader

MOST_LABEL: Final = 255  # label planes are uint8
MOST_CHANNELS: Final = 64
MOST_VALUE: Final = 65_535


@dataclass(frozen=True)
class Dataset:
    """channels: names in the network's order."""

    channels: tuple[str, ...]
    labels: Labels
    description: str
    licence: str

    @property
    def modality(self) -> tuple[str, ...]:
        """DICOM Modality of the first channel, where its name says one."""
        known = MODALITIES.get(self.channels[0].strip().casefold())
        return (known,) if known else ()


def read_dataset(about: Reader) -> Dataset:
    """Raises InvalidBundle naming the key."""
    key = "channel_names" if "channel_names" in about else "modality"
    names = about.reader(key)
    count = len(names.content)
    if not 1 <= count <= MOST_CHANNELS or set(names.content) != {str(number) for number in range(count)}:
        raise about.wrong(key, f"expected names of channels 0, 1 ..., found {list(names.content)!r:.80}")
    channels = tuple(names.text(str(number)) for number in range(count))
    texts = [about.content.get(word) for word in ("description", "licence", "license")]
    description, *licences = (text.strip() if isinstance(text, str) else "" for text in texts)
    return Dataset(channels, read_labels(about), description, next(filter(None, licences), ""))


def read_labels(about: Reader) -> Labels:
    """Heads and labels as nnU-Net's LabelManager counts them. Raises InvalidBundle."""
    values = {str(name): _values(about, name, value) for name, value in about.reader("labels").content.items()}
    if values.get("background") != (0,) or about.content["labels"]["background"] != 0:
        raise about.wrong("labels", "expected a label background of 0, nnU-Net's rule")
    given = about.content["labels"]
    ignored = values.pop("ignore", None)
    known = sorted({value for group in values.values() for value in group})
    if ignored is not None and (isinstance(given["ignore"], list) or ignored != (known[-1] + 1,)):
        raise about.wrong(
            "labels::ignore", f"expected {known[-1] + 1}, above all other labels, found {given['ignore']}"
        )
    foreground = tuple(value for value in known if value)
    if not foreground:
        raise about.wrong("labels", "there is no label but the background")
    if any(len(group) > 1 for group in values.values()):
        return _regions(about, values, foreground)
    if len(known) > MOST_LABEL + 1:
        raise about.wrong(
            "labels", f"{len(known) - 1} classes: at most {MOST_LABEL} and the background can be told apart"
        )
    # The network's i-th head is the i-th label there is, and nnU-Net writes i: labels with gaps come out renumbered.
    called = {value: " or ".join(name for name, group in values.items() if value in group) for value in known}
    return Labels(len(known), tuple(enumerate((called[value] for value in foreground), 1)), None, foreground)


def _values(about: Reader, name: str, value: Any) -> tuple[int, ...]:
    group = value if isinstance(value, list) else [value]
    if not group or not all(type(label) is int and 0 <= label <= MOST_VALUE for label in group):
        raise about.wrong(f"labels::{name}", f"expected a whole number or a list of some, found {value!r:.80}")
    return tuple(group)


def _regions(about: Reader, values: Mapping[str, tuple[int, ...]], foreground: tuple[int, ...]) -> Labels:
    regions = [(name, set(group)) for name, group in values.items() if set(group) != {0}]
    order = about.integers("regions_class_order", len(regions))
    if not all(1 <= label <= MOST_LABEL for label in order):
        raise about.wrong("regions_class_order", f"expected labels from 1 to {MOST_LABEL}, found {list(order)}")
    named: dict[int, str] = {}
    for number, label in enumerate(order):
        called = _painted(regions, number)
        named[label] = f"{named[label]} or {called}" if label in named else called
    return Labels(len(regions), tuple(sorted(named.items())), tuple(order), foreground)


def _painted(regions: list[tuple[str, set[int]]], number: int) -> str:
    """What is left of a region once those after it were painted over it."""
    name, group = regions[number]
    over = [other for other, its in regions[number + 1 :] if its & group]
    return f"{name} without {', '.join(over)}" if over else name
