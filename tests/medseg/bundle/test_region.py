"""The region that a bundle's metadata asks for: read, refused by key, explained; and the bundle that finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medseg.bundle.catalog import find_bundle
from medseg.bundle.describe import details, verify
from medseg.bundle.load import load_bundle
from medseg.bundle.region import ByBody, ByBundle, ByThreshold, LookMode, Mirror, NotFound, Region, Statistics, View
from medseg.cli.app import make_app
from medseg.errors import InvalidBundle
from tests.medseg.bundle.zoo import spleen_like, threshold


def with_region(folder: Path, region: Any, **others: Any) -> Path:
    file = folder / "configs/metadata.json"
    metadata = json.loads(file.read_text())
    metadata["medseg"] = {"region": region} | others
    file.write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return spleen_like(tmp_path / "spleen")


THRESHOLD = {"threshold": [150, None]}
READ: dict[str, tuple[dict[str, Any], Region]] = {
    "least": (
        {"first_pass": "body"},
        Region(ByBody(4.0), LookMode.BOX, (0.0,) * 3),
    ),
    "all": (
        {
            "first_pass": {"threshold": [-20, 150.5]},
            "spacing_mm": 2,
            "mode": "windows",
            "margin_mm": [10, 20, 30],
            "min_volume_ml": 1.5,
            "most": 2,
            "not_found": "flag",
        },
        Region(
            ByThreshold(-20.0, 150.5, 2.0),
            LookMode.WINDOWS,
            (10.0, 20.0, 30.0),
            1.5,
            2,
            Statistics.IMAGE,
            NotFound.FLAG,
        ),
    ),
    "statistics of the image": (
        {"first_pass": THRESHOLD, "margin_mm": 5, "statistics": "image"},
        Region(ByThreshold(150.0, None, 4.0), LookMode.BOX, (5.0,) * 3, statistics=Statistics.IMAGE),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_region_is_read(case: str, bundle: Path) -> None:
    written, region = READ[case]
    assert load_bundle(with_region(bundle, written)).region == region


VIEWS = [{"label": 1, "mirror": "LR"}, {"label": 2, "labels": {"1": 2}}]
SEGMENTS = [{"number": 1, "label": "Left", "laterality": "SCT:7771000"}, {"number": 2, "label": "Right"}]
WRONG: dict[str, tuple[Any, str]] = {
    "no first pass": ({}, "region::first_pass: missing"),
    "an unknown one": ({"first_pass": "head"}, "first_pass: expected \"body\", .* found 'head'"),
    "two": ({"first_pass": THRESHOLD | {"bundle": "a"}}, "first_pass: expected"),
    "no end": ({"first_pass": {"threshold": [None, None]}}, "threshold: expected .* one of them may be null"),
    "ends swapped": ({"first_pass": {"threshold": [5, 1]}}, "threshold: expected"),
    "unknown key": ({"first_pass": "body", "margin": 3}, "margin: no such key: did you mean margin_mm?"),
    "negative margin": ({"first_pass": "body", "margin_mm": -1}, "margin_mm: expected mm"),
    "margin and size": ({"first_pass": "body", "margin_mm": 1, "size_mm": 9}, "size_mm: a box has a size or a margin"),
    "no size": ({"first_pass": "body", "size_mm": [9, 0, 9]}, "size_mm: expected lengths above 0"),
    "unknown mode": ({"first_pass": "body", "mode": "boxes"}, 'mode: expected "box" or "windows"'),
    "no pieces": ({"first_pass": "body", "most": 0}, "most: expected how many"),
    "flat grid": ({"first_pass": "body", "spacing_mm": 0}, "spacing_mm: expected a distance"),
    "views of windows": ({"first_pass": "body", "mode": "windows", "views": VIEWS}, 'views: .* must be "box"'),
    "statistics of boxes, windows": (
        {"first_pass": "body", "mode": "windows", "statistics": "box"},
        "statistics: windows of the image",
    ),
    "a label that the network has not": (
        {"first_pass": "body", "views": [{"label": 1, "labels": {"2": 1}}]},
        r"labels: expected labels of the network \(1 to 1\)",
    ),
    "one label, two views": (
        {"first_pass": "body", "views": [{"label": 1}, {"label": 1}]},
        "views: expected one view for each label",
    ),
    "an axis that is none": (
        {"first_pass": "body", "views": [{"label": 1, "mirror": "RL"}]},
        "mirror: expected LR, AP",
    ),
    "views without names": ({"first_pass": "body", "views": VIEWS}, "segments: missing"),
    "a missing bundle": ({"first_pass": {"bundle": "nowhere"}}, "no first pass 'nowhere': there is no such folder"),
    "one outside": ({"first_pass": {"bundle": "../other"}}, "'../other' leads out of the bundle"),
    "an absolute one": ({"first_pass": {"bundle": "/other"}}, "'/other' leads out of the bundle"),
    "itself": ({"first_pass": {"bundle": "."}}, "'.' leads out of the bundle"),
    "one behind a link": ({"first_pass": {"bundle": "link"}}, "'link' leads out of the bundle"),
    "a spacing of another's": ({"first_pass": {"bundle": "within"}, "spacing_mm": 2}, "has a spacing of its own"),
    "a label of none": ({"first_pass": {"bundle": "within", "labels": [3]}}, r"has the labels \[1\], not \[3\]"),
    "one with a region": ({"first_pass": {"bundle": "nested"}}, "bundle nested has a region itself"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_key(case: str, bundle: Path, tmp_path: Path) -> None:
    region, why = WRONG[case]
    threshold(bundle / "within")
    threshold(tmp_path / "other")
    (bundle / "link").symlink_to(tmp_path / "other")
    with_region(threshold(bundle / "nested"), {"first_pass": "body"})
    with pytest.raises(InvalidBundle, match=why):
        load_bundle(with_region(bundle, region))


def test_a_first_pass_lies_within_or_has_a_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = threshold(tmp_path / "bundles/rough")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(named.parent))
    loaded = load_bundle(with_region(bundle, {"first_pass": {"bundle": "rough"}}))
    assert loaded.first_pass is not None and loaded.first_pass.path == named
    threshold(bundle / "passes/rough")
    loaded = load_bundle(with_region(bundle, {"first_pass": {"bundle": "passes/rough"}}))
    assert loaded.first_pass is not None and loaded.first_pass.path == (bundle / "passes/rough").resolve()
    assert loaded.region is not None and loaded.region.first_pass == ByBundle("passes/rough")
    verify(loaded)


def test_the_first_passs_weights_are_part_of_the_digest(bundle: Path) -> None:
    within = threshold(bundle / "within")
    before = load_bundle(with_region(bundle, {"first_pass": {"bundle": "within"}})).digest
    assert load_bundle(bundle).digest == before
    weights = within / "models/model.pt"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert load_bundle(bundle).digest != before


def test_views_are_read_and_explained(bundle: Path) -> None:
    threshold(bundle / "within")
    region = {"first_pass": {"bundle": "within", "labels": [1]}, "margin_mm": 8, "most": 1, "views": VIEWS[:1]}
    loaded = load_bundle(with_region(bundle, region, segments=SEGMENTS[:1]))
    assert loaded.region is not None and loaded.region.views == (View(1, (Mirror.LEFT_RIGHT,), {1: 1}),)
    record = details(loaded)
    assert record["region"]["views"] == [{"label": 1, "mirror": ["LR"], "labels": {"1": 1}}]
    assert record["streamable"] is False
    shown = CliRunner().invoke(make_app(), ["bundles", "inspect", str(bundle)]).stdout
    for words in (
        "region: a first pass (bundle within 0.5.9, labels 1) says where the network looks; elsewhere is background",
        "region: the network sees boxes around each piece that it finds, the 1 largest of a label, with a margin of",
        "region: where nothing is found the series is refused",
        "region: label 1 of the first pass is mirrored (LR), gives the network's labels 1 as 1",
    ):
        assert words in shown


def test_a_result_may_have_more_labels_than_the_network(bundle: Path) -> None:
    views = [{"label": 1}, {"label": 2, "mirror": ["LR", "AP"], "labels": {"1": 2}}]
    region = {"first_pass": "body", "views": views}
    loaded = load_bundle(with_region(bundle, region, segments=SEGMENTS, postprocess={"keep_largest": [1, 2]}))
    assert [segment.label for segment in loaded.segments] == ["Left", "Right"]
    assert loaded.segments[0].laterality is not None
    without = with_region(bundle, {"first_pass": "body"}, segments=SEGMENTS)
    with pytest.raises(InvalidBundle, match="the network gives labels 1 to 1, found 2"):
        load_bundle(without)


def test_a_recipe_that_only_monai_carries_out_has_no_windows_of_its_own(bundle: Path) -> None:
    file = bundle / "configs/inference.json"
    config = json.loads(file.read_text())
    config["preprocessing"]["transforms"].append({"_target_": "GaussianSmoothd", "keys": "image"})
    file.write_text(json.dumps(config))
    with pytest.raises(InvalidBundle, match="region::mode: windows cannot run by themselves"):
        load_bundle(with_region(bundle, {"first_pass": "body", "mode": "windows"}))
    assert load_bundle(with_region(bundle, {"first_pass": "body"})).region is not None


def test_a_bundle_without_a_region_looks_everywhere(bundle: Path) -> None:
    loaded = find_bundle(str(bundle))
    assert loaded.region is None and details(loaded)["region"] is None
