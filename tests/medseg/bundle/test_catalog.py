"""Finding bundles, and deciding which of them a series fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import medseg
from medseg.bundle.bundle import Bundle, Expects
from medseg.bundle.catalog import bundle_folders, choose, extent_mm, find_bundle, fits, hinted, installed
from medseg.bundle.load import load_bundle
from medseg.dicom.instance import Plane, Slice
from medseg.dicom.series import Series, Stack
from medseg.errors import AmbiguousBundle, DoesNotFit, NoSuchBundle
from tests.conftest import ROOT
from tests.medseg.bundle import zoo


def make_stack(
    *,
    shape: tuple[int, int, int] = (36, 52, 40),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    axes: np.ndarray | None = None,
    modality: str = "MR",
    body_part: str = "",
    description: str = "",
) -> Stack:
    """axes: columns are the LPS directions of increasing slice, row and column; axial by default."""
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float) if axes is None else axes
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    planes = [
        Plane(affine[:3, 0] * k, axes[:, 2], axes[:, 1], (spacing_mm[1], spacing_mm[2]), shape[1], shape[2])
        for k in range(shape[0])
    ]
    slices = tuple(Slice(plane, lambda: np.zeros(shape[1:], np.float32)) for plane in planes)
    series = Series("1.2", "1.2.3", modality, 1, description, body_part, ())
    return Stack(series, slices, np.arange(shape[0], dtype=float), affine, np.full(shape[0], spacing_mm[0]), "1.2.4")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    loaded = load_bundle(zoo.spleen_like(tmp_path_factory.mktemp("catalog") / "regional"))
    expects = Expects(("MR",), ("HEAD", "BRAIN"), "*T1*", ((20, 80), (30, 90), (20, 80)), None, 16)
    return replace(loaded, name="regional", expects=expects)


def test_a_series_that_fits(bundle: Bundle) -> None:
    assert fits(make_stack(), bundle) == ()
    assert fits(make_stack(body_part="Brain", description="sag t1 mprage"), bundle) == ()


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (make_stack(modality="CT"), "modality CT, expected MR"),
        (make_stack(body_part="KNEE"), "body part KNEE, expected HEAD or BRAIN"),
        (make_stack(shape=(15, 52, 40), spacing_mm=(2, 1, 1)), "15 slices, expected at least 16"),
        (make_stack(shape=(36, 52, 192)), "field of view 192 mm left-right, expected 20 to 80 mm"),
        (make_stack(shape=(36, 20, 40)), "field of view 20 mm front-back, expected 30 to 90 mm"),
        (make_stack(shape=(180, 52, 40)), "field of view 180 mm head-foot, expected 20 to 80 mm"),
        (make_stack(description="T2 TSE"), "series description 'T2 TSE', expected *T1*"),
    ],
)
def test_each_reason_names_what_is_and_what_should_be(stack: Stack, reason: str, bundle: Bundle) -> None:
    assert fits(stack, bundle) == (reason,)


def test_the_user_overrules_the_hint_and_nothing_else(bundle: Bundle) -> None:
    assert fits(make_stack(description="T2 TSE"), bundle, hints=False) == ()
    assert fits(make_stack(description="T2 TSE", modality="CT", shape=(36, 52, 192)), bundle, hints=False) != ()


def test_a_hint_says_yes_no_or_nothing(bundle: Bundle) -> None:
    described = [hinted(make_stack(description=text).series, bundle.expects) for text in ("ax T1", "ax T2", "")]
    assert described == [True, False, None]
    assert hinted(make_stack(description="x").series, Expects()) is None


SIGNED = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@given(
    axes=st.sampled_from(SIGNED),
    angles=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    shape=st.tuples(*[st.integers(2, 60)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
)
def test_the_field_of_view_does_not_depend_on_how_the_slices_lie(
    axes: np.ndarray, angles: tuple[float, float, float], shape: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    """48 orientations, each turned by up to 23 degrees about every axis as long as it stays nearest to its own."""
    turned = _rotation(angles) @ axes
    nearest = [int(np.argmax(np.abs(turned[:, grid]))) for grid in range(3)]
    if sorted(nearest) != [0, 1, 2] or nearest != [int(np.argmax(np.abs(axes[:, grid]))) for grid in range(3)]:
        return
    found = extent_mm(make_stack(shape=shape, spacing_mm=(spacing[0], spacing[1], spacing[2]), axes=turned))
    for grid in range(3):
        assert found[nearest[grid]] == pytest.approx(shape[grid] * spacing[grid])


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = [i for i in range(3) if i != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        total = turn @ total
    return total


def test_a_bridged_gap_counts_for_the_field_of_view() -> None:
    stack = make_stack(shape=(10, 20, 20))
    coordinates = stack.coordinates.copy()
    coordinates[5:] += 1
    assert extent_mm(replace(stack, coordinates=coordinates))[2] == pytest.approx(11)


def test_choosing(bundle: Bundle) -> None:
    stack = make_stack()
    other, unfit = replace(bundle, name="other"), replace(bundle, name="ct", expects=Expects(("CT",)), default=True)
    assert choose(stack, [bundle, unfit]) is bundle
    default = replace(bundle, name="main", default=True)
    assert choose(stack, [bundle, default, other, unfit]) is default
    with pytest.raises(AmbiguousBundle, match="regional, other"):
        choose(stack, [bundle, other, unfit])
    with pytest.raises(AmbiguousBundle):
        choose(stack, [default, replace(other, default=True)])
    told = replace(other, default=True, described=True, expects=Expects(("MR",), series_description="*FLAIR*"))
    assert choose(stack, [default, told]) is default
    assert choose(stack, [told]) is told
    flair = replace(stack, series=replace(stack.series, description="Ax FLAIR"))
    assert choose(flair, [replace(default, default=False, expects=Expects()), told]) is told
    with pytest.raises(AmbiguousBundle):
        choose(flair, [replace(default, expects=Expects()), told])
    with pytest.raises(DoesNotFit, match="regional: modality US, expected MR; ct: modality US, expected CT"):
        choose(make_stack(modality="US"), [bundle, unfit])
    with pytest.raises(DoesNotFit, match="bundle regional does not fit: modality CT"):
        choose(make_stack(modality="CT"), [bundle])
    with pytest.raises(DoesNotFit, match="no bundle is installed"):
        choose(stack, [])


def test_a_checkout_offers_its_bundles() -> None:
    shipped = {folder.name for folder in (ROOT / "bundles").iterdir() if (folder / "configs/metadata.json").is_file()}
    assert shipped <= bundle_folders().keys()


def test_an_installed_wheel_offers_its_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "medseg"
    zoo.spleen_like(package / "_bundles" / "shipped")
    monkeypatch.setattr(medseg, "__file__", str(package / "__init__.py"))
    assert bundle_folders() == {"shipped": package / "_bundles" / "shipped"}


def test_folders_of_the_environment_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several, one = tmp_path / "several", tmp_path / "alone"
    zoo.spleen_like(several / "b", seed=1)
    zoo.spleen_like(several / "a")
    zoo.spleen_like(one)
    monkeypatch.setenv("MEDSEG_BUNDLES", f"{several}:{one}:{tmp_path / 'none'}")
    assert list(bundle_folders())[:3] == ["a", "b", "alone"]
    assert find_bundle("b").path == several / "b"


def test_another_package_offers_its_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.spleen_like(tmp_path / "hospital_bundles" / "theirs")
    (tmp_path / "hospital_bundles/__init__.py").write_text("raise RuntimeError('imported')")
    information = tmp_path / "hospital_bundles-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: hospital_bundles\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[medseg.bundles]\nhospital = hospital_bundles\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_bundle("theirs").path == tmp_path / "hospital_bundles" / "theirs"


def test_a_bundle_by_its_folder_or_not_at_all(tmp_path: Path) -> None:
    folder = zoo.spleen_like(tmp_path / "mine")
    assert find_bundle(str(folder)).name == "mine"
    with pytest.raises(NoSuchBundle, match="no bundle 'yours': known are"):
        find_bundle("yours")


def test_a_broken_bundle_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zoo.spleen_like(tmp_path / "sound")
    (zoo.spleen_like(tmp_path / "broken") / "configs/metadata.json").write_text("{")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    names = [bundle.name for bundle in installed()]
    assert "sound" in names
    assert "broken" not in names
    assert "broken is left out" in caplog.text
