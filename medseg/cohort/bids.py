"""A cohort's results as a BIDS derivative dataset, beside their own folders: label volumes, sidecars, lookup tables.

    OUT/dataset_description.json, README, participants.tsv, .bidsignore     with the tables
    OUT/sub-01/anat/sub-01_space-T1w_seg-BUNDLE_dseg.nii.gz, .json, .tsv    with a result, before its item is done
    OUT/results/                                                            the results themselves, which BIDS ignores

A sidecar says which item its files are of, and is there first: no item writes over what another's says (`NameTaken`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from medseg.bundle.bundle import Segment
from medseg.cohort.bids_names import BidsLabels, BidsSource, mark, own_word, told_apart, word
from medseg.cohort.finished import PART, STATE, Finished
from medseg.cohort.items import CohortItem
from medseg.cohort.study import LASTING, RESULTS, Task, failure_of
from medseg.errors import InputError, MedsegError, OutputNotWritable
from medseg.job.folder import FILES, Format
from medseg.names import file_name
from medseg.results.nifti import is_overlapping, write_masks
from medseg.texts import to_json, valid

#: The version of BIDS whose schema says what such names and keys may be.
VERSION: Final = "1.11.1"
_IGNORED: Final = (f"/{RESULTS}", "results.*", "report.html", "failures.csv", "manifest.json")
_PATH = re.compile(r"sub-[A-Za-z0-9+_/-]+\.nii\.gz")
_NUMBER = re.compile(r"\d+(-\d+)?")
_README: Final = """Segmentations by medseg, as BIDS derivatives. For research use.

A file is `*_dseg.nii.gz` where each voxel has at most one segment, with the meaning of its numbers in `*_dseg.tsv`; or
a `*_mask.nii.gz` for each segment where they overlap. `seg` and `desc` name the bundle, `space` the image on whose grid
the labels are. Each sidecar tells the bundle, its doubts, and the folder under `results` with all else of the result.

Subjects and sessions are those of a BIDS dataset where the images came from one. A study of DICOM has marks instead:
of its patient (column `patient` of results.csv) and of the study (columns `item` and `bids`). They are made with a
secret of this output (.medseg/cohort.json), and tell nothing of the patient.
"""


class NameTaken(InputError):
    """Another item's files have the name already."""

    code = "bids_name_taken"

    def __init__(self, name: str, item: str, other: str) -> None:
        super().__init__(
            f"{item}: {name} is that of {other}, and nothing is written over it: use another output folder"
        )


def placed(task: Task, item: CohortItem, done: Finished) -> Finished:
    """An item with the files of its results in the dataset: each result has `bids`, {files: {segment number: path},
    source: where it is linked to}. What cannot be written is a failure, and no result."""
    assert item.labels is not None
    segments = {bundle.name: bundle.segments for some in task.of(item).choices for bundle in some}
    words = dict(zip(segments, told_apart(map(word, segments)), strict=True))
    results: list[Mapping[str, Any]] = []
    failures = list(done.failures)
    for result in done.results:
        name = result["bundle"]
        try:
            results.append(_place(task, item, done, result, segments[name], words[name]))
        except MedsegError as error:
            failures.append(failure_of(error, result["study_uid"], result["series_uid"], name))
    lasting = done.lasting and all(one.exit_code in LASTING for one in failures)
    return replace(done, results=tuple(results), failures=tuple(failures), lasting=lasting)


def take_away(out: Path, before: Finished | None, done: Finished) -> None:
    """Remove files that an item had, and has no more."""
    kept = set(files_of(done))
    for path in files_of(before) if before is not None else ():
        if path not in kept and _PATH.fullmatch(path):
            stem = path.removesuffix(".nii.gz")
            for ending in (".nii.gz", ".tsv", ".json"):
                (out / f"{stem}{ending}").unlink(missing_ok=True)


def files_of(item: Finished) -> Iterator[str]:
    """Label volumes of an item, by their paths in the dataset; none where it has another layout."""
    for result in item.results:
        yield from dict.fromkeys(result.get("bids", {}).get("files", {}).values())


def _place(
    task: Task,
    item: CohortItem,
    done: Finished,
    result: Mapping[str, Any],
    segments: Sequence[Segment],
    bundle_word: str,
) -> dict[str, Any]:
    """One result with its files. Raises OutputNotWritable, NameTaken."""
    labels = _with_marks(item, task.secret, done.patient, result)
    volume, numbers = task.out / result["folder"] / FILES[Format.NIFTI], [str(one.number) for one in segments]
    source = None if labels.source is None else _link(task.out, labels.source)
    sidecar = _sidecar(item.name, done.day, result, source)
    try:
        if is_overlapping(volume):
            words = told_apart(word(segment.label) for segment in segments)
            stems = [labels.stem(label=label, desc=bundle_word) + "_mask" for label in words]
            for stem, segment in zip(stems, segments, strict=True):
                _write_sidecar(task.out, stem, sidecar | {"Description": segment.label, "Type": "ROI"})
            with _replacing(task.out, [f"{stem}.nii.gz" for stem in stems]) as masks:
                write_masks(volume, masks)
        else:
            stems = [labels.stem(seg=bundle_word) + "_dseg"] * len(numbers)
            _write_sidecar(task.out, stems[0], sidecar | {"Description": f"Segments of {result['bundle']}"})
            with _replacing(task.out, [f"{stems[0]}.tsv", f"{stems[0]}.nii.gz"]) as (table, copy):
                table.write_text(_lookup(segments), "utf-8")
                shutil.copyfile(volume, copy)
    except OSError as error:
        raise OutputNotWritable(task.out, error.strerror or str(error)) from error
    files = dict(zip(numbers, (f"{stem}.nii.gz" for stem in stems), strict=True))
    return dict(result) | {"bids": {"files": files, "source": source}}


def _with_marks(item: CohortItem, secret: bytes, patient: str, result: Mapping[str, Any]) -> BidsLabels:
    """What an item is called, of a study of DICOM with its patient, itself, and the series."""
    assert item.labels is not None
    if item.nifti is not None:
        return item.labels
    labels = item.labels
    if not labels.subject:
        subject = patient or mark(secret, f"patient of {item.name}")
        labels = replace(labels, subject=subject, session=mark(secret, f"study {item.name}"))
    number = PurePosixPath(result["folder"]).name.removesuffix(f"_{file_name(result['bundle'])}")
    series = f"series{number.replace('-', 'n')}" if _NUMBER.fullmatch(number) else f"series{own_word(number)}"
    return replace(labels, entities=(*labels.entities, ("acq", series)))


def _link(out: Path, source: BidsSource) -> dict[str, str]:
    """A file in another dataset as a BIDS URI, and what that name of a dataset stands for."""
    way = os.path.relpath(source.root, out.absolute())
    url = quote(os.fsencode(way))
    name = f"raw{hashlib.sha256(url.encode()).hexdigest()[:6]}"
    return {"uri": f"bids:{name}:{quote(os.fsencode(source.path))}", "name": name, "url": url}


def _sidecar(item: str, day: int | None, result: Mapping[str, Any], source: Mapping[str, str] | None) -> dict[str, Any]:
    of_source = {"Sources": [source["uri"]]} if source else {}
    return {
        "Item": item,
        "SpatialReference": source["uri"] if source else "orig",
        **of_source,
        "Manual": False,
        "Bundle": result["bundle"],
        "BundleVersion": result["bundle_version"],
        "BundleDigest": result["bundle_digest"],
        "ResultKey": result["result_key"],
        "Folder": result["folder"],
        "Phase": result["phase"],
        "Day": day,
        "Flags": [flag["message"] for flag in result["flags"]],
    }


def _write_sidecar(out: Path, stem: str, sidecar: Mapping[str, Any]) -> None:
    """Raises NameTaken where another item's is there: a name is made by one, even where several runs write at once."""
    path = out / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(out) as temporary:
        temporary.write_bytes(to_json(sidecar, indent=2))
        with suppress(FileExistsError):
            os.link(temporary, path)
            return
        with suppress(ValueError, AttributeError):
            other = json.loads(path.read_text("utf-8")).get("Item")
            if other != sidecar["Item"]:
                raise NameTaken(stem, sidecar["Item"], str(other))
        temporary.replace(path)


def _lookup(segments: Sequence[Segment]) -> str:
    """`dseg.tsv`: what each number means."""
    rows = (
        (str(one.number), " ".join(valid(one.label).split()), "#{:02x}{:02x}{:02x}".format(*one.color))
        for one in segments
    )
    return "".join("\t".join(row) + "\n" for row in (("index", "name", "color"), *rows))


@contextmanager
def _replacing(out: Path, paths: Sequence[str]) -> Iterator[list[Path]]:
    """Files to write to, each of which takes its place in the dataset once all are written."""
    with ExitStack() as stack:
        temporary = [stack.enter_context(_temporary(out)) for _ in paths]
        yield temporary
        for file, path in zip(temporary, paths, strict=True):
            file.replace(out / path)


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """An empty file where nobody looks for results; gone at the end, if it is still there."""
    with tempfile.NamedTemporaryFile(dir=out / STATE, prefix=PART, delete=False) as file:
        path = Path(file.name)
    try:
        path.chmod(0o644)
        yield path
    finally:
        path.unlink(missing_ok=True)


def dataset_files(items: Iterable[Finished]) -> dict[str, bytes]:
    """What stands at the head of the dataset, by name."""
    participants: Counter[str] = Counter()
    links: dict[str, str] = {}
    bundles: set[tuple[str, str, str]] = set()
    for item in items:
        for result in item.results:
            if not (placed := result.get("bids")):
                continue
            participants[next(iter(placed["files"].values())).partition("/")[0]] += 1
            bundles.add((result["bundle"], result["bundle_version"], result["bundle_digest"]))
            if placed["source"]:
                links[placed["source"]["name"]] = placed["source"]["url"]
    made_by = [{"Name": "medseg", "Version": version("medseg")}]
    made_by += [
        {"Name": name, "Version": number, "Description": f"bundle, SHA-256 {digest}"}
        for name, number, digest in sorted(bundles)
    ]
    description = {
        "Name": "Segmentations by medseg",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": made_by,
        "SourceDatasets": [{"URL": url} for _, url in sorted(links.items())],
    } | ({"DatasetLinks": dict(sorted(links.items()))} if links else {})
    rows = "".join(f"{name}\t{count}\n" for name, count in sorted(participants.items()))
    columns = {
        "results": {"Description": "How many results of this participant there are, one of each volume and bundle"}
    }
    return {
        "dataset_description.json": to_json(description, indent=2),
        "participants.tsv": f"participant_id\tresults\n{rows}".encode(),
        "participants.json": to_json(columns, indent=2),
        "README": _README.encode(),
        ".bidsignore": "".join(f"{pattern}\n" for pattern in _IGNORED).encode(),
    }
