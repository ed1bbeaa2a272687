"""Bundles that look at several images: learnt with and without those that may be missing, scored likewise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg.bundle.bundle import Bundle
from medseg.bundle.channels import Channel, Channels
from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network
from medseg.bundle.recipe import Normalize, ScaleRange, Step
from medseg.errors import UsageError
from medseg.training.batches import make_batch
from medseg.training.data import UnusableCase, digest, find_cases
from medseg.training.evaluate import evaluate, rows
from medseg.training.plan import make_plan
from medseg.training.prepare import Sample, has_units, intensity, load_sample, prepared_sample, slice_stack
from medseg.training.train import plan_of, train

T1, FLAIR = Channel("T1", optional=True), Channel("FLAIR")
BOTH = Channels((T1, FLAIR), "FLAIR")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten blocks, bright in FLAIR and dark in T1, which is of another range; two cases have no T1."""
    folder = tmp_path_factory.mktemp("several")

    def save(array: np.ndarray, name: str) -> None:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")

    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(10):
        rng = np.random.default_rng(number)
        label = np.zeros((20, 22, 12), np.uint8)
        i, j, k = rng.integers(3, 8, 3) // (1, 1, 2)
        label[i : i + 9, j : j + 9, k : k + 6] = 1
        save(label, f"labels/case_{number}")
        save(np.float32(rng.normal(100, 8, label.shape) + 90 * (label == 1)), f"images/case_{number}_flair")
        if number not in (2, 5):
            save(np.float32(rng.normal(900, 60, label.shape) - 600 * (label == 1)), f"images/case_{number}_t1")
    return folder


def mr(name: str, *, optional: bool = False) -> dict[str, object]:
    return {"name": name, "modality": "MR", "optional": optional}


def two_images(small_bundle: Path) -> Bundle:
    """Three slices of T1 and FLAIR at once, each scaled on its own; T1 may be missing."""
    inference, metadata, plan = (
        small_bundle / "configs" / f"{name}.json" for name in ("inference", "metadata", "train")
    )
    config = json.loads(inference.read_text())
    config["network_def"] |= {"spatial_dims": 2, "in_channels": 6, "out_channels": 2}
    config["inferer"] = {
        "_target_": "medseg.bundle.inferers.SliceStackInferer",
        "slices": 3,
        "spatial_dim": 2,
        "roi_size": [16, 16],
        "overlap": 0.5,
    }
    config["preprocessing"]["transforms"] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
    ]
    inference.write_text(json.dumps(config))
    own = json.loads(metadata.read_text())
    own["medseg"] |= {"channels": [mr("T1", optional=True), mr("FLAIR")], "reference": "FLAIR"}
    own["medseg"]["segments"] = own["medseg"]["segments"][:1]
    own["medseg"] |= {"expects": {}, "postprocess": {}, "tta": []}
    own["network_data_format"]["outputs"]["pred"] |= {"num_channels": 2, "channel_def": {"0": "background", "1": "it"}}
    own["network_data_format"]["inputs"]["image"] |= {"num_channels": 6, "channel_def": {}}
    metadata.write_text(json.dumps(own))
    changes = {"window": [16, 16], "batch_size": 8, "steps": 80, "slices": {"labelled": 0.5}, "drop": 0.5}
    plan.write_text(json.dumps(json.loads(plan.read_text()) | changes))
    return load_bundle(small_bundle, trained=False)


def test_learnt_and_scored_with_an_image_and_without(small_bundle: Path, cases: Path, tmp_path: Path) -> None:
    bundle = two_images(small_bundle)
    assert bundle.channels is not None and bundle.recipe.fallback is None
    torch.manual_seed(0)
    record = train(bundle, cases, build_network(bundle), plan_of(bundle), out=tmp_path / "trained")
    trained = load_bundle(tmp_path / "trained")
    both, alone = evaluate(trained, cases, everything=True), evaluate(trained, cases, everything=True, without=["T1"])
    assert record.cases < len(both.cases) == 10
    for found in (both, alone):
        assert min(score.dice for case in found.cases.values() for score in case.values()) > 0.8
    apart = [name for name in both.cases if both.cases[name] != alone.cases[name]]
    assert apart and not {"case_2", "case_5"} & set(apart), "these two have no T1 to leave out"
    flagged = {str(row["case"]): row["flags"] for row in rows(both) if row["structure"] != "whole"}
    assert {name for name, codes in flagged.items() if "channel_absent" in str(codes).split()} == {"case_2", "case_5"}
    assert all("channel_absent" in str(row["flags"]) for row in rows(alone) if row["flags"] is not None)
    assert min(float(row["confidence"]) for row in rows(both) if row["confidence"] is not None) > 0.5
    with pytest.raises(UsageError, match="no channel 'FLAIR' that is optional"):
        evaluate(trained, cases, without=["FLAIR"])


def test_files_are_found_by_the_channels_names(cases: Path) -> None:
    found = find_cases(cases, BOTH)
    assert [list(case.channels) for case in found[1:4]] == [["T1", "FLAIR"], ["FLAIR"], ["T1", "FLAIR"]]
    assert {case.image.name for case in found} == {f"case_{n}_flair.nii.gz" for n in range(10)}
    assert len(find_cases(cases, Channels((replace(T1, optional=False), FLAIR), "FLAIR"))) == 8
    assert find_cases(cases, Channels((FLAIR,), "FLAIR")) == [], "one image has no channel's name"
    assert digest(found) != digest([replace(case, channels={"FLAIR": case.image}) for case in found])


def test_an_image_on_another_grid_is_refused(cases: Path, tmp_path: Path) -> None:
    (case,) = [one for one in find_cases(cases, BOTH) if one.id == "case_1"]
    moved = nibabel.load(case.channels["T1"])
    nibabel.save(nibabel.Nifti1Image(moved.get_fdata(), np.diag([1, 1, 2, 1])), tmp_path / "t1.nii.gz")
    with pytest.raises(UnusableCase, match="channel T1 lies on another grid than FLAIR"):
        load_sample(replace(case, channels={**case.channels, "T1": tmp_path / "t1.nii.gz"}), (), 2, BOTH)


def batch(sample: Sample, steps: tuple[Step, ...], **changes: object) -> torch.Tensor:
    config = {
        "seed": 1,
        "steps": 1,
        "batch_size": 40,
        "window": [8, 10],
        "loss": {"_target_": "DiceLoss"},
        "optimizer": {"_target_": "SGD", "lr": 1.0},
    }
    prepare = intensity(steps)
    made = slice_stack(sample, prepare, 2, 3) if "window" not in changes else prepared_sample(sample, prepare)
    return make_batch([made], 2, prepare, replace(make_plan(config | changes)), 0)[0]


def volume(absent: tuple[int, ...], optional: tuple[int, ...]) -> Sample:
    image = 300 + 40 * torch.randn((3, 8, 10, 6), generator=torch.Generator().manual_seed(0))
    image[list(absent)] = 0
    return Sample(image, torch.zeros((8, 10, 6), dtype=torch.uint8), absent, optional)


def test_a_missing_image_is_what_inference_gives_for_zeros() -> None:
    """Whatever is done to brightness: the third is never there, the first in half of the samples."""
    varied = {"gamma": 0.3, "noise": 0.2, "gain": 0.3, "offset": 0.3, "probability": 1.0}
    images = batch(volume((2,), (0,)), (ScaleRange(-100, 100, 0, 1, False),), drop=0.5, augment=varied)
    images = images.unflatten(1, (3, 3)).transpose(1, 2)  # (samples, images, slices, ...)
    blank = (images == 0.5).flatten(2).all(dim=2)
    assert blank[:, 2].all() and not blank[:, 1].any()
    assert 10 <= int(blank[:, 0].sum()) <= 30


def test_images_are_varied_each_for_itself() -> None:
    images = batch(volume((), ()), (Normalize(),), augment={"gain": 0.5, "offset": 0.5}).unflatten(1, (3, 3))
    spread = images.std(dim=(1, 3, 4))
    assert (spread[:, 0] / spread[:, 1]).std() > 0.05


def test_values_with_a_unit_keep_it() -> None:
    """Hounsfield units and SUV: a box is not stretched to its own least and greatest value."""
    steps = (ScaleRange(-200, 200, -1, 1, False),)
    assert has_units(steps) and not has_units((Normalize(), *steps))
    sample = volume((), ())
    (box, *_) = batch(sample, steps, window=[8, 10, 6], augment={})
    torch.testing.assert_close(box, sample.image / 200, atol=1e-4, rtol=0)
