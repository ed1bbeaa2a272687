"""The peers' programs as functions. Each skips the test that calls it where its program is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from tests.peers import missing, require

_OHIF = Path(__file__).parent / "ohif_adapter" / "load_seg.bundle.mjs"


def dciodvfy(path: Path) -> list[str]:
    """Errors that dicom3tools finds in an object's IOD; it speaks on stderr, and its exit code tells nothing."""
    said = _run("dciodvfy", path, check=False)
    return [line.strip() for line in said.stderr.splitlines() if line.startswith("Error")]


def segimage2itkimage(seg: Path, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """dcmqi's reader: for each group of segments that do not overlap, labels (i, j, k) and their affine to RAS mm."""
    folder.mkdir()
    _run(
        "segimage2itkimage", "--inputDICOM", seg, "--outputDirectory", folder, "--outputType", "nii", "--mergeSegments"
    )
    images = [nibabel.load(file) for file in sorted(folder.glob("*.nii.gz"))]
    return [(np.asarray(image.dataobj).astype(np.int64), image.affine) for image in images]


def tid1500reader(path: Path, output: Path) -> dict[str, Any]:
    """dcmqi's reading of an SR TID 1500."""
    _run("tid1500reader", "--inputDICOM", path, "--outputMetadata", output)
    report: dict[str, Any] = json.loads(output.read_text())
    return report


def dsrdump(path: Path) -> str:
    """DCMTK's rendering of an SR; fails where DCMTK cannot make sense of it."""
    return _run("dsrdump", "+Pl", path).stdout


def dcm2pnm(path: Path, picture: Path) -> np.ndarray:
    """What DCMTK shows of an image in colour: (rows, columns, 3)."""
    _run("dcm2pnm", "--write-png", path, picture)
    return np.asarray(Image.open(picture).convert("RGB"))


def dcmdump(path: Path) -> str:
    """DCMTK's rendering of any object."""
    return _run("dcmdump", "-q", path).stdout


def plastimatch(structures: Path, source: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What plastimatch fills of a structure set on the grid of a series: by name, (i, j, k) and affine to RAS mm."""
    options = ("--referenced-ct", source, "--output-prefix", folder, "--prefix-format", "nii")
    _run("plastimatch", "convert", "--input", structures, *options)
    images = {file.stem: nibabel.load(file) for file in folder.iterdir()}
    return {name: (np.asarray(image.dataobj) != 0, image.affine) for name, image in images.items()}


def bids_validator(dataset: Path) -> list[str]:
    """Errors that the official validator finds in a BIDS dataset; what it only recommends is none."""
    said = _run("bids-validator-deno", dataset, "--format", "json", check=False)
    issues = json.loads(said.stdout)["issues"]["issues"]
    return [f"{one['code']} {one['location']}" for one in issues if one["severity"] == "error"]


def ohif(seg: Path, source: Path) -> dict[str, Any]:
    """What OHIF's own loader (cornerstone adapters) makes of a SEG: labels, and voxels by segment and instance.

    source: a folder with the source series alone.
    """
    if not _OHIF.exists() or shutil.which("node") is None:
        missing("OHIF's adapter")
    said = _run("node", _OHIF, seg, source, check=False)
    answer: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return answer


def _run(program: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [require(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=check, timeout=120)
