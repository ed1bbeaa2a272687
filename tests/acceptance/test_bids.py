"""`medseg infer --layout bids`: the official validator takes it, files are the results, no name tells of a patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg.dicom.phantom import Box, make_series, write_series
from tests.acceptance.conftest import Medseg
from tests.acceptance.test_geometry import threshold_bundle
from tests.acceptance.test_results_places import volume
from tests.medseg.bundle.zoo import rewrite
from tests.peers.programs import bids_validator

NAME, ID = "PLANTED^NAME", "PLANTED-7"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def overlapping(folder: Path) -> Path:
    """A bundle that finds what is brighter than -450 HU, and within it what is brighter than -175 HU."""

    def change(config: dict[str, Any]) -> None:
        activate = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
        _, invert, _ = [activate, *config["postprocessing"]["transforms"]]
        discrete = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
        config["postprocessing"]["transforms"] = [activate, invert, discrete]

    rewrite(threshold_bundle(folder), change)
    named = {"0": "whole body", "1": "Whole Bödy"}
    rewrite(
        folder,
        lambda said: said["network_data_format"]["outputs"]["pred"].update(channel_def=named),
        "metadata.json",
    )
    weights = {"weight": torch.full((2, 1, 1, 1, 1), 20.0), "bias": torch.tensor([-10.0, -15.0])}
    save_file(weights, folder / "models/model.safetensors")
    return folder


def study(folder: Path, *series: int, seed: int = 0) -> Path:
    """A study of one patient, whose name and ID are planted."""
    for number in series:
        box = Box((0.0, 0.0, 0.0), (4.0, 2.0 + number, 4.0), 100.0)
        made = make_series(shape=(5, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], number=number, seed=seed)
        for image in made:
            image.PatientName, image.PatientID = NAME, ID
        write_series(made, folder / f"{number}")
    return folder


def raw(folder: Path, *files: str) -> Path:
    """A BIDS dataset of volumes, each with some more voxels found."""
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    for number, file in enumerate(files, 1):
        volume(folder / file, 7 * number)
    return folder


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_official_validator_takes_every_kind_of_input(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    source = raw(
        tmp_path / "in" / "raw", *(f"sub-01/ses-1/anat/sub-01_ses-1_{what}.nii.gz" for what in ("T1w", "FLAIR"))
    )
    volume(source / "sub-02" / "pet" / "sub-02_trc-FDG_run-2_pet.nii.gz", 3)
    volume(tmp_path / "in" / "Case 7.nii.gz", 5)
    study(tmp_path / "in" / "dicom" / "one", 1, 2)
    study(tmp_path / "in" / "dicom" / "two", 1, seed=1)
    ran = medseg("infer", "in", "--bundle", bundle, "-o", "out", "--layout", "bids", "--jobs", 1)
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    assert bids_validator(out) == []

    rows = table(out)
    files = sorted(row["bids"] for row in rows)
    assert len(set(files)) == len(rows) == 7
    assert [file for file in files if file.startswith("sub-0")] == [
        "sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_seg-threshold_dseg.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_space-T1w_seg-threshold_dseg.nii.gz",
        "sub-02/anat/sub-02_run-2_space-pet_seg-threshold_dseg.nii.gz",
    ]
    assert {row["patient"] for row in rows if row["study_uid"]} == {
        file.split("/")[0].removeprefix("sub-") for file in files if "series" in file
    }
    for row in rows:
        image, result = (nibabel.load(out / path) for path in (row["bids"], f"{row['folder']}/labels.nii.gz"))
        assert np.array_equal(image.dataobj, result.dataobj) and np.array_equal(image.affine, result.affine)
        assert np.count_nonzero(image.dataobj) == int(row["voxels"]) > 0
        lookup = (out / row["bids"].replace(".nii.gz", ".tsv")).read_text().splitlines()
        assert lookup[1].split("\t")[:2] == [row["segment"], row["label"]]
        sidecar = json.loads((out / row["bids"].replace(".nii.gz", ".json")).read_text())
        assert (sidecar["Item"], sidecar["Folder"]) == (row["item"], row["folder"])

    sidecar = json.loads((out / "sub-01/ses-1/anat/sub-01_ses-1_space-T1w_seg-threshold_dseg.json").read_text())
    description = json.loads((out / "dataset_description.json").read_text())
    _, name, path = sidecar["Sources"][0].split(":")
    assert (out / description["DatasetLinks"][name] / path).samefile(
        source / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    )
    assert [made["Name"] for made in description["GeneratedBy"]] == ["medseg", "threshold"]
    for path in out.rglob("*"):
        assert "PLANTED" not in str(path).upper()
        if path.is_file() and path.suffix != ".dcm":
            assert b"PLANTED" not in path.read_bytes()


@pytest.mark.slow
def test_segments_that_overlap_are_masks_and_files_of_another_bundle_go(
    medseg: Medseg, bundle: Path, tmp_path: Path
) -> None:
    study(tmp_path / "in", 1)
    several = overlapping(tmp_path / "bundles" / "over_lap")
    assert medseg("infer", "in", "--bundle", several, "-o", "out", "--layout", "bids").code == 0
    out = tmp_path / "out"
    assert bids_validator(out) == []
    rows = table(out)
    names = [Path(row["bids"]).name.partition("_space-orig_")[2] for row in rows]
    assert names == ["label-wholeBody_desc-overLap_mask.nii.gz", "label-WholeBody2_desc-overLap_mask.nii.gz"]
    labels = nibabel.load(out / rows[0]["folder"] / "labels.nii.gz")
    for channel, row in enumerate(rows):
        mask = nibabel.load(out / row["bids"])
        assert np.array_equal(mask.dataobj, labels.dataobj[..., channel])
        assert np.array_equal(mask.affine, labels.affine)
        assert np.count_nonzero(mask.dataobj) == int(row["voxels"]) > 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_mask.*")}
    next(path for path in before if path.name.endswith(".nii.gz")).unlink()
    assert medseg("infer", "in", "--bundle", several, "-o", "out", "--layout", "bids").code == 0
    assert all(path.stat().st_mtime_ns != mtime for path, mtime in before.items())
    refused = medseg("infer", "in", "--bundle", several, "-o", "out", "--jobs", 1)
    assert refused.code == 2 and "has the layout bids, asked for is folders" in refused.err
    ran = medseg("infer", "in", "--bundle", bundle, "-o", "out", "--layout", "bids", "--overwrite")
    assert ran.code == 0, ran.err
    assert not list(out.rglob("*_mask.*"))
    assert bids_validator(out) == []
