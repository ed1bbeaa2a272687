"""From a data folder to a bundle that segments, and its scores through the pipeline."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.bundle.network import build_network
from medseg.bundle.weights import USUAL
from medseg.errors import InvalidBundle, OutputExists
from medseg.training.data import HeldOut, LabelledCase, NoCases, UnusableCase, find_cases
from medseg.training.evaluate import AS_SHIPPED, COLUMNS, STATISTICS, evaluate, evaluate_cases, segment_nifti, write_csv
from medseg.training.fit import TrainingStopped
from medseg.training.prepare import load_sample
from medseg.training.scores import WHOLE
from medseg.training.train import CHECKPOINT, CURVES, RECORD, TrainingRecord, plan_of, train
from tests.medseg.training.conftest import AFFINES, SHIPPED, write_case


def run(bundle: Path, data: Path, out: Path, **options: object) -> TrainingRecord:
    loaded = load_bundle(bundle, trained=False)
    plan = plan_of(loaded, steps=options.pop("steps", None))  # type: ignore[arg-type]
    torch.manual_seed(plan.seed)
    return train(loaded, data, build_network(loaded), plan, out=out, **options)  # type: ignore[arg-type]


def test_a_trained_bundle_segments_what_was_set_aside(small_bundle: Path, phantom_cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    record = run(small_bundle, phantom_cases, out)
    assert record == load_record(out)
    assert record.cases + len(evaluated := evaluate(load_bundle(out), phantom_cases).cases) == 10
    assert set(evaluated) == {case.id for case in find_cases(phantom_cases) if HeldOut()(case.id)}
    assert min(case[WHOLE].dice for case in evaluated.values()) > 0.8
    assert not (out / CHECKPOINT).exists()
    assert (out / "LICENSE").is_file()
    assert (out / CURVES).read_text().startswith("<svg")


def load_record(out: Path) -> TrainingRecord:
    content = json.loads((out / RECORD).read_text())
    return TrainingRecord(**content | {"held_out": HeldOut(**content["held_out"])})


def test_stopped_training_resumes_to_the_same_file(small_bundle: Path, phantom_cases: Path, tmp_path: Path) -> None:
    whole = run(small_bundle, phantom_cases, tmp_path / "whole", steps=8)
    seen: list[object] = []
    with pytest.raises(TrainingStopped, match="after step 5 of 8"):
        run(small_bundle, phantom_cases, tmp_path / "b", steps=8, on_step=seen.append, cancelled=lambda: len(seen) >= 5)
    assert not (tmp_path / "b" / USUAL[0]).exists()
    assert (tmp_path / "b" / CHECKPOINT).is_file()
    resumed = run(small_bundle, phantom_cases, tmp_path / "b", steps=8, resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.final_loss == whole.final_loss


def test_existing_weights_are_kept(small_bundle: Path, phantom_cases: Path, tmp_path: Path) -> None:
    first = run(small_bundle, phantom_cases, tmp_path / "out", steps=1)
    with pytest.raises(OutputExists):
        run(small_bundle, phantom_cases, tmp_path / "out", steps=2)
    assert load_record(tmp_path / "out") == first
    assert run(small_bundle, phantom_cases, tmp_path / "out", steps=2, overwrite=True).steps == 2


def test_weights_of_either_form_count_as_there(small_bundle: Path, phantom_cases: Path, tmp_path: Path) -> None:
    (tmp_path / "out/models").mkdir(parents=True)
    (old := tmp_path / "out/models/model.pt").touch()
    with pytest.raises(OutputExists):
        run(small_bundle, phantom_cases, tmp_path / "out", steps=1)
    run(small_bundle, phantom_cases, tmp_path / "out", steps=1, overwrite=True)
    assert not old.exists()
    assert load_bundle(tmp_path / "out").weights_twin is None


@pytest.mark.parametrize(("named", "written"), [("fold0/net.pt", "fold0/net.safetensors"), ("net.bin", None)])
def test_weights_go_where_the_configuration_loads_them(
    named: str, written: str | None, small_bundle: Path, phantom_cases: Path, tmp_path: Path
) -> None:
    file = small_bundle / "configs" / "inference.json"
    loader = {"_target_": "CheckpointLoader", "load_path": f"models/{named}", "load_dict": {"model": "@network_def"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"handlers": [loader]}))
    if written is None:
        with pytest.raises(InvalidBundle, match=r"models/net\.bin: .*training writes"):
            run(small_bundle, phantom_cases, tmp_path / "out", steps=1)
    else:
        run(small_bundle, phantom_cases, tmp_path / "out", steps=1)
        assert load_bundle(tmp_path / "out").weights == tmp_path / "out/models" / written


def test_trained_in_place(small_bundle: Path, phantom_cases: Path) -> None:
    run(small_bundle, phantom_cases, small_bundle, steps=1)
    assert load_bundle(small_bundle).weights == small_bundle / USUAL[0]


def test_nothing_to_train_or_score(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCases):
        run(small_bundle, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NoCases):
        evaluate(load_bundle(small_bundle, trained=False), tmp_path / "nowhere", everything=True)


def test_a_plan_for_other_axes_is_refused(small_bundle: Path) -> None:
    path = small_bundle / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"window": [16, 16]}))
    with pytest.raises(InvalidBundle, match=r"train\.json\.window"):
        plan_of(load_bundle(small_bundle, trained=False))


def test_a_bundle_without_a_plan_is_refused(small_bundle: Path) -> None:
    (small_bundle / "configs" / "train.json").unlink()
    with pytest.raises(InvalidBundle, match="cannot be trained"):
        plan_of(load_bundle(small_bundle, trained=False))


@pytest.mark.parametrize("axcodes", AFFINES)
def test_samples_lie_on_the_models_grid(small_bundle: Path, tmp_path: Path, axcodes: str) -> None:
    write_case(tmp_path, "a", 1, AFFINES[axcodes])
    sample = load_sample(find_cases(tmp_path)[0], load_bundle(small_bundle, trained=False).recipe.steps, 3)
    as_ras = nibabel.as_closest_canonical(nibabel.load(tmp_path / "labels" / "a.nii.gz"))
    assert np.array_equal(sample.label.numpy(), np.asanyarray(as_ras.dataobj))
    assert sample.image.shape == (1, *sample.label.shape)


def test_mismatched_cases_are_named(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 1, AFFINES["RAS"])
    with pytest.raises(UnusableCase, match="case a: expected labels below 2, found 2"):
        load_sample(find_cases(tmp_path)[0], (), 2)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(UnusableCase, match="differ in grid"):
        load_sample(find_cases(tmp_path)[0], (), 3)


@pytest.fixture
def shipped() -> Bundle:
    return load_bundle(SHIPPED, trained=False)


def test_csv_has_rows_per_case_and_summaries(shipped: Bundle, phantom_cases: Path) -> None:
    def perfect_but_for_a_shift(case: LabelledCase) -> np.ndarray:
        truth = np.asanyarray(nibabel.load(case.label).dataobj)
        return np.stack([np.roll(truth == one.number, 1, axis=0) for one in shipped.segments])

    cases = find_cases(phantom_cases)
    result = evaluate_cases(cases, shipped.segments, perfect_but_for_a_shift)
    file = io.StringIO()
    write_csv(result, file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert tuple(rows[0]) == COLUMNS
    names = [*(one.label for one in shipped.segments), WHOLE]
    assert [(row["case"], row["structure"]) for row in rows] == [
        (row, name) for row in (*(case.id for case in cases), *STATISTICS) for name in names
    ]
    assert all(float(row["dice"]) == pytest.approx(7 / 8) for row in rows)  # blocks 8 wide, moved by one
    assert all(float(row["hausdorff95_mm"]) == 1 for row in rows)
    assert all(float(row["volume_error_ml"]) == 0 for row in rows)
    assert {row["volume_ml"] for row in rows if row["case"] == "worst"} == {""}  # no volume is worse than another


@pytest.mark.parametrize("axcodes", AFFINES)
def test_masks_come_back_on_the_files_own_grid(
    shipped: Bundle, small_bundle: Path, phantom_cases: Path, tmp_path: Path, axcodes: str
) -> None:
    """A one-step network is noise, but the same noise for the same anatomy: stored otherwise, found otherwise."""
    run(small_bundle, phantom_cases, tmp_path / "out", steps=1)
    bundle = load_bundle(tmp_path / "out")
    write_case(tmp_path, "ras", 5, AFFINES["RAS"])
    image = nibabel.load(tmp_path / "images" / "ras.nii.gz")
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axcodes)
        )
    )
    nibabel.save(turned, tmp_path / "images" / "turned.nii.gz")
    expected = segment_nifti(tmp_path / "images" / "ras.nii.gz", bundle, AS_SHIPPED)
    found = segment_nifti(tmp_path / "images" / "turned.nii.gz", bundle, AS_SHIPPED)
    back = found[:, :: -1 if axcodes[0] == "L" else 1, :: -1 if axcodes[1] == "P" else 1]
    assert expected.any()
    assert np.array_equal(back, expected)
