"""What `medseg infer` does with every real series at hand and with series derived from them, as a table.

    python -m tests.acceptance.verdicts ../shared/data > docs/verdicts.md

Each input is offered first to whatever bundle fits by itself, then, where none does, to a spleen-style bundle of random
weights by `--bundle`. No run may end in a traceback.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom import dcmread

from medseg.dicom.geometry import GeometryVerdict, classify
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.sources import find_instances
from tests.medseg.bundle.zoo import rewrite, spleen_like

TRUTH_SUFFIX = "_ground_truth.nii.gz"
HEAD = """# What happens to real series

Made by `python -m tests.acceptance.verdicts ../shared/data`: `medseg infer` on every series of the test data and on
derived ones, first with the bundles that ship, then with a spleen-style bundle of small random weights, for any
modality, by `--bundle`. "Written": a SEG and a report were written and verified. Nothing ended in a traceback. All 48
orientations, oblique, feet-first, prone and tilted phantoms are in `tests/acceptance/test_geometry.py`.

| input | modality | shipped bundles | `--bundle` | reason or finding |
| --- | --- | --- | --- | --- |
"""


MAKERS = """
## Series of several makers

The archives of `dicom_vendors`, each unzipped: what `medseg inspect` says of their series (frames of reference, which
de-identification took from some, assumed).

| archive | modality | verdict | volumes | reason |
| --- | --- | --- | --- | --- |
"""

TRUTH = """
## Against the ground truth beside them

The volumes of `dicom2nifti_series` as the NIfTI files beside them have them, made by another program: voxels equal or
not, and how far the affines differ. Here two slices are enough for a volume.

| series | ground truth | volumes | equal to it | affine within, mm |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One series of an input."""

    name: str
    modality: str
    shipped: str
    explicit: str
    reason: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.modality} | {self.shipped} | {self.explicit} | {self.reason} |"


def medseg(*arguments: object) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "medseg", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=900
    )
    if "Traceback" in done.stderr or done.returncode not in (0, 1, 3):
        raise RuntimeError(f"{arguments}: exit {done.returncode}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def inputs(data: Path, scratch: Path) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Name, path and options of each input."""
    dicom = data / "dicom"
    yield "ct_ircadb01_17/PATIENT_DICOM.zip", dicom / "ct_ircadb01_17/PATIENT_DICOM.zip", ()
    assume = ("--assume-frame-of-reference",)
    yield "the same, frame of reference assumed", dicom / "ct_ircadb01_17/PATIENT_DICOM.zip", assume
    yield "ct_ircadb01_17/MASKS_DICOM.zip, assumed", dicom / "ct_ircadb01_17/MASKS_DICOM.zip", assume
    for name in ("ct_totalseg_j2k", "mr_siemens_hfs_t1_sag", "mr_siemens_hfs_mosaic_dwi"):
        yield name, dicom / name, ()
    for folder in sorted(path for path in (dicom / "dcmqi").rglob("*") if path.is_dir()):
        if any(child.is_file() and child.suffix == ".dcm" for child in folder.iterdir()):
            yield folder.relative_to(dicom).as_posix(), folder, ()
    yield "pydicom_files", dicom / "pydicom_files", ()
    yield from derived(dicom / "mr_siemens_hfs_t1_sag", scratch)


def derived(source: Path, scratch: Path) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """The sagittal T1 shuffled, reversed and with slices missing; a tilted CT phantom."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    images = sorted((dcmread(path) for path in files), key=lambda image: float(image.ImagePositionPatient[0]))
    orders = {
        "shuffled": images[::2] + images[1::2],
        "reversed": images[::-1],
        "one slice missing": images[:12] + images[13:],
        "three slices missing": images[:12] + images[15:],
    }
    for name, some in orders.items():
        folder = scratch / name.replace(" ", "_")
        folder.mkdir()
        for number, image in enumerate(some):
            image.save_as(folder / f"{number:03d}.dcm")
        yield f"mr_siemens_hfs_t1_sag, {name}", folder, ()
    write_series(make_series(shape=(24, 48, 48), tilt_deg=18.0), scratch / "tilted")
    yield "phantom CT, gantry tilt 18 degrees", scratch / "tilted", ()
    with zipfile.ZipFile(scratch / "tilted.zip", "w") as archive:
        for path in sorted((scratch / "tilted").iterdir()):
            archive.write(path, path.name)
    yield "the same, zipped", scratch / "tilted.zip", ()


def rows(data: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        bundle = spleen_like(scratch / "any", window=(64, 64, 64))
        rewrite(
            bundle, lambda metadata: metadata["network_data_format"]["inputs"]["image"].pop("modality"), "metadata.json"
        )
        for number, (name, path, options) in enumerate(inputs(data, scratch)):
            modality = {one["series_uid"]: one["modality"] for one in inspected(path, options)}
            shipped = results(medseg("infer", path, "-o", scratch / f"a{number}", "--json", *options))
            explicit = results(
                medseg("infer", path, "-o", scratch / f"b{number}", "--json", "--bundle", bundle, *options)
            )
            for uid in dict.fromkeys((*shipped, *explicit)):
                mine, theirs = shipped.get(uid, []), explicit.get(uid, [])
                yield Row(
                    name,
                    modality.get(uid, ""),
                    verdict(mine),
                    verdict(theirs),
                    reasons([*misfits(mine), *(theirs or mine)]),
                )


def makers(data: Path) -> Iterator[str]:
    """A row for each series of each archive."""
    for archive in sorted((data / "dicom_vendors").glob("*.zip")):
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
            for series in inspected(Path(folder), ("--assume-frame-of-reference",)):
                volumes = "; ".join(
                    f"{one['slices']} slices" + (f" ({one['phase']})" if one["phase"] else "")
                    for one in series["stacks"]
                )
                why = [f"{one['reason']}: {one['detail']}" for one in series["refusals"]]
                why += [f["detail"] for one in series["stacks"] for f in one["findings"] if f["code"] != "phase"]
                said = "; ".join(dict.fromkeys(text if len(text) < 160 else f"{text[:157]}..." for text in why))
                modality, verdict = series["modality"], series["verdict"]
                yield f"| {archive.stem} | {modality} | {verdict} | {volumes or '-'} | {said.replace('|', '/')} |"


def truths(data: Path) -> Iterator[str]:
    """A row for each series with a ground truth."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(data / "dicom_vendors" / "dicom2nifti_series.zip") as packed:
            packed.extractall(folder)
        for path in sorted(folder.rglob(f"*{TRUTH_SUFFIX}")):
            source = path.with_name(path.name.removesuffix(TRUTH_SUFFIX))
            for series in find_instances(source).series():
                name = source.parent.relative_to(folder).as_posix()
                yield f"| {name} | {compared(classify(series, assume_frame_of_reference=True, min_slices=2), path)} |"


def compared(verdict: GeometryVerdict, truth: Path) -> str:
    """What of a ground truth the volumes of a series are."""
    image = nib.as_closest_canonical(nib.load(truth))
    right = np.asanyarray(image.dataobj)
    right = right.reshape(*right.shape[:3], -1)
    size = " x ".join(map(str, right.shape if right.shape[3] > 1 else right.shape[:3]))
    if not verdict.stacks:
        return f"{size} | {verdict.refusals[0].reason} | - | -"
    met, apart = set(), 0.0
    for stack in verdict.stacks:
        voxels = np.stack([one.read() for one in stack.slices])
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine[:, [2, 1, 0, 3]]
        ours = nib.as_closest_canonical(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine))
        mine = np.asanyarray(ours.dataobj)
        met |= {n for n in range(right.shape[3]) if np.array_equal(mine, right[..., n].astype(np.float32))}
        apart = max(apart, float(np.abs(ours.affine - image.affine).max()))
    return f"{size} | {len(verdict.stacks)} | {len(met)} of {right.shape[3]} | {apart:.4f}"


def inspected(path: Path, options: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        return medseg("inspect", path, "--json", *options)
    except RuntimeError:
        return []


def results(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_series: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_series.setdefault(record["series_uid"] or "", []).append(record)
    return by_series


def verdict(records: list[dict[str, Any]]) -> str:
    written = sum("error" not in record for record in records)
    codes = sorted({record["error"]["code"] for record in records if "error" in record})
    said = [f"written x {written}" if written > 1 else "written"] if written else []
    return ", ".join((*said, *codes)) or "-"


def misfits(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Why no shipped bundle fits."""
    return [record for record in records if "error" in record and record["error"]["code"] == "does_not_fit"]


def reasons(records: list[dict[str, Any]]) -> str:
    """The sentences, UIDs and places on disk left out."""
    said: list[str] = []
    for record in records:
        if "error" in record:
            said.append(record["error"]["message"].split(": ", 1)[-1])
        else:
            said += [flag["message"] for flag in record["flags"] if flag["segment"] is None]
    short = (text if len(text) < 160 else f"{text[:157]}..." for text in dict.fromkeys(said))
    return "; ".join(short).replace("|", "/")


if __name__ == "__main__":
    sys.stdout.write(HEAD)
    for row in rows(Path(sys.argv[1])):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    sys.stdout.write(MAKERS)
    for line in makers(Path(sys.argv[1])):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(TRUTH)
    for line in truths(Path(sys.argv[1])):
        sys.stdout.write(f"{line}\n")
