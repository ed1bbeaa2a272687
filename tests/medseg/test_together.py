"""Several bundles on one series: results as from each alone, and every slice decoded once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from medseg.cli.app import make_app
from medseg.dicom import slices
from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from medseg.errors import UsageError
from tests.medseg.bundle.zoo import rewrite, spleen_like

RESULTS = ("segments", "flags", "result_key", "sop_instance_uids")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return (
        spleen_like(folder / "one", window=(16, 16, 16), smooth=True),
        spleen_like(folder / "two", window=(24, 24, 24), smooth=True, seed=5),
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    organ = Ellipsoid((0.0, 0.0, 0.0), (20.0, 20.0, 15.0), 90.0)
    datasets = make_series(spacing_mm=(2.0, 1.5, 1.5), shape=(16, 32, 32), objects=[organ])
    for number, dataset in enumerate(datasets):  # nothing is decoded but for its bytes, which are unlike
        dataset.PixelData = bytes([number]) + dataset.PixelData[1:]
    write_series(datasets, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each instance was decoded."""
    counted: Counter[str] = Counter()
    real = slices.read_plane

    def read(instance: Any, *rest: Any) -> Any:
        counted[instance.sop_instance_uid] += 1
        return real(instance, *rest)

    monkeypatch.setattr(slices, "read_plane", read)
    return counted


def infer(study: Path, out: Path, *bundles: Path) -> tuple[int, dict[str, dict[str, Any]], str]:
    named = [part for bundle in bundles for part in ("--bundle", str(bundle))]
    ran = CliRunner().invoke(make_app(), ["infer", str(study), "-o", str(out), "--json", "--device", "cpu", *named])
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    return ran.exit_code, {record["bundle"]: record for record in records}, ran.stderr


def test_results_are_those_of_single_runs_and_slices_are_decoded_once(
    bundles: tuple[Path, Path], study: Path, tmp_path: Path, decoded: Counter[str]
) -> None:
    code, both, _ = infer(study, tmp_path / "both", *bundles)
    assert code == 0 and set(both) == {"one", "two"}
    assert len(decoded) == 16 and set(decoded.values()) == {1}
    assert sorted(record["decoded"] for record in both.values()) == [0, 16]
    for bundle in bundles:
        _, alone, _ = infer(study, tmp_path / bundle.name, bundle)
        one, other = alone[bundle.name], both[bundle.name]
        assert one["decoded"] is None
        assert {key: one[key] for key in RESULTS} == {key: other[key] for key in RESULTS}
        assert one["segments"][0]["voxels"]
        pixels = [dcmread(record["outputs"]["seg"]).PixelData for record in (one, other)]
        assert pixels[0] == pixels[1]


def test_one_that_fails_or_does_not_fit_leaves_the_other(
    bundles: tuple[Path, Path], study: Path, tmp_path: Path
) -> None:
    unfit = spleen_like(tmp_path / "unfit", window=(16, 16, 16))
    rewrite(unfit, lambda content: content.update(medseg={"expects": {"modality": ["MR"]}}), "metadata.json")
    code, records, told = infer(study, tmp_path / "out", bundles[0], unfit)
    assert (code, records["unfit"]["error"]["code"], "error" in records["one"]) == (0, "does_not_fit", False)
    assert "unfit" in told
    broken = spleen_like(tmp_path / "broken", window=(16, 16, 16))
    (broken / "models" / "model.pt").write_bytes(b"no weights")
    code, records, _ = infer(study, tmp_path / "out2", broken, bundles[1])
    assert (code, "error" in records["broken"], "error" in records["two"]) == (1, True, False)


def test_what_is_wrong_with_the_series_is_told_once(bundles: tuple[Path, Path], study: Path, tmp_path: Path) -> None:
    for path in study.iterdir():
        dataset = dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    ran = CliRunner().invoke(
        make_app(),
        ["infer", str(study), "-o", str(tmp_path / "out"), "--bundle", str(bundles[0]), "--bundle", str(bundles[1])],
    )
    assert ran.exit_code == 3 and ran.stderr.count("refused:") == 1


def test_bundles_of_one_name_are_refused(bundles: tuple[Path, Path], study: Path) -> None:
    twice = ["--bundle", str(bundles[0])] * 2
    ran = CliRunner().invoke(make_app(), ["infer", str(study), *twice])
    assert isinstance(ran.exception, UsageError) and "different names, found one, one" in str(ran.exception)
