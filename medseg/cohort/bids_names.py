"""What things are called in a BIDS dataset: labels of letters and digits, entities in their order, each once.

    sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz    a file that is named so keeps its entities
    sub-3f9a../ses-77b1..                        a study of DICOM: marks of patient and study, never what a header says
    sub-case7                                    another NIfTI file: its name, where that is letters and digits
    sub-case71d0e5f2a                            else what can be read of it, and a hash

A result is `*_space-T1w_seg-BUNDLE_dseg`, or where segments overlap `*_space-T1w_label-SEGMENT_desc-BUNDLE_mask` each.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

#: Keys of entities in the order in which a name has them (the schema's `rules.entities`).
ORDER: Final = (
    *("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space", "chunk", "seg", "label", "desc"),
)
#: What of a source's entities a segmentation may have, by datatype; of any other datatype it lies in `anat`.
_KEPT: Final[Mapping[str, frozenset[str]]] = {
    "anat": frozenset({"task", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk"}),
    "func": frozenset({"task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space", "chunk"}),
    "dwi": frozenset({"acq", "rec", "dir", "run", "part", "space", "chunk"}),
}
_NAMED = re.compile(r"sub-[A-Za-z0-9+]+(?:_[a-z]+-[A-Za-z0-9+]+)*_([A-Za-z0-9]+)\.nii(?:\.gz)?")
_IDENTIFIED = re.compile(r"sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?")
_LABEL = re.compile(r"[A-Za-z0-9]{1,40}")
_LONGEST: Final = 40


@dataclass(frozen=True)
class BidsSource:
    """A file in a BIDS dataset: where that lies, and the file's path within."""

    root: Path
    path: str


@dataclass(frozen=True)
class BidsLabels:
    """What an item is called. subject, session: empty where they are marks of the patient and the study, which its
    headers tell. entities: others of the source, by key; `space` is always among them."""

    subject: str = ""
    session: str = ""
    datatype: str = "anat"
    entities: tuple[tuple[str, str], ...] = (("space", "orig"),)
    source: BidsSource | None = None

    def stem(self, **more: str) -> str:
        """Path of a file within the dataset, without its ending."""
        entities = {"sub": self.subject, "ses": self.session, **dict(self.entities), **more}
        name = "_".join(f"{key}-{entities[key]}" for key in ORDER if entities.get(key))
        folders = [f"sub-{self.subject}", f"ses-{self.session}" if self.session else "", self.datatype]
        return "/".join((*filter(None, folders), name))


def word(text: str) -> str:
    """What a person named as a label: `Left hippocampus` is `LeftHippocampus`. Two texts may give the same."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    parts = re.findall(r"[A-Za-z0-9]+", plain)
    joined = "".join((*parts[:1], *(part[:1].upper() + part[1:] for part in parts[1:])))
    return joined[:_LONGEST] or f"x{_hash(text)}"


def own_word(text: str) -> str:
    """A label that no other text gives: itself where it is one, else what can be read of it, and a hash."""
    return text if _LABEL.fullmatch(text) else f"{word(text)[: _LONGEST - 8]}{_hash(text)}"


def mark(secret: bytes, what: str) -> str:
    """A label that tells nothing of what it stands for, and in this output always stands for the same."""
    return hmac.digest(secret, what.encode("utf-8", "backslashreplace"), "sha256").hex()[:12]


def told_apart(words: Iterable[str]) -> list[str]:
    """Labels of one list, a number at the end of those that are another's, whatever case."""
    used: set[str] = set()
    apart = []
    for label in words:
        names = (label, *(f"{label}{number}" for number in range(2, len(used) + 2)))
        apart.append(next(name for name in names if name.casefold() not in used))
        used.add(apart[-1].casefold())
    return apart


def labels_of(name: str, nifti: Path | None) -> tuple[BidsLabels, str]:
    """What an item of that name is called, and whose subjects it is one of: labels of different owners must differ."""
    if nifti is not None and (matched := _NAMED.fullmatch(nifti.name)):
        return _of_source(nifti, matched[1])
    if matched := _IDENTIFIED.fullmatch(name):
        return BidsLabels(matched[1], matched[2] or ""), ""
    if nifti is not None:
        return BidsLabels(own_word(name)), f"name {name}"
    return BidsLabels(), ""


def _of_source(file: Path, suffix: str) -> tuple[BidsLabels, str]:
    entities = dict(part.split("-", 1) for part in file.name.split("_")[:-1])
    subject, session = entities.pop("sub"), entities.pop("ses", "")
    folders = [f"sub-{subject}", *([f"ses-{session}"] if session else []), file.parent.name]
    path = file.absolute()
    inside = list(path.parts[-len(folders) - 1 : -1]) == folders
    root = path.parents[len(folders)] if inside else path.parent
    datatype = file.parent.name if inside and file.parent.name in _KEPT else "anat"
    kept = {"space": suffix} | {key: value for key, value in entities.items() if key in _KEPT[datatype]}
    source = BidsSource(root, path.relative_to(root).as_posix()) if inside else None
    return BidsLabels(subject, session, datatype, tuple(sorted(kept.items())), source), f"folder {root}"


def all_labels(items: Sequence[tuple[str, Path | None, str]]) -> list[BidsLabels]:
    """What each of a cohort's items is called: subjects of different owners apart, and files of one subject, too.

    items: name, NIfTI file, and a mark that tells each from all others. What has a hash for it has the same one as
    long as it lies where it did, and the others do.
    """
    called = [labels_of(name, nifti) for name, nifti, _ in items]
    owners = defaultdict(set)
    for labels, owner in called:
        owners[labels.subject.casefold()].add(owner)
    own = [
        replace(labels, subject=f"{labels.subject}x{_hash(owner)}")
        if labels.subject and owner and len(owners[labels.subject.casefold()]) > 1
        else labels
        for labels, owner in called
    ]
    often = Counter(labels.stem().casefold() for labels in own if labels.subject)
    return [
        _apart(labels, item[2]) if often[labels.stem().casefold()] > 1 else labels
        for labels, item in zip(own, items, strict=True)
    ]


def _apart(labels: BidsLabels, mark: str) -> BidsLabels:
    entities = dict(labels.entities)
    return replace(labels, entities=tuple((entities | {"acq": f"{entities.get('acq', '')}x{mark[:8]}"}).items()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
