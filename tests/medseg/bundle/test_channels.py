"""Channels of a bundle: what the metadata says of them, and which volumes they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from medseg.bundle.channel_rules import read_channels
from medseg.bundle.channels import Channel, Channels, Registration, by_names
from medseg.bundle.load import load_bundle
from medseg.bundle.matching import ChannelCandidate, choose, judge
from medseg.bundle.schema import Reader
from medseg.dicom.series import Stack
from medseg.errors import InvalidBundle
from tests.medseg.bundle import zoo

T1C: dict[str, Any] = {
    "name": "T1c",
    "modality": "MR",
    "any": [
        {"SeriesDescription": ["*t1*c*", "*t1*gd*"], "ContrastBolusAgent": "present"},
        {"SeriesDescription": ["*t1*"], "not": {"SeriesDescription": ["*flair*"]}, "ContrastBolusAgent": "present"},
    ],
}
T1: dict[str, Any] = {
    "name": "T1",
    "modality": "MR",
    "any": [{"SeriesDescription": "*t1*", "not": {"ContrastBolusAgent": "present", "SeriesDescription": "*flair*"}}],
}
FLAIR: dict[str, Any] = {
    "name": "FLAIR",
    "any": [
        {"SeriesDescription": ["*flair*", "*dark*fluid*"]},
        {"InversionTime": [1500, 3500], "EchoTime": [70, None]},
    ],
}
ADC: dict[str, Any] = {"name": "ADC", "any": [{"ImageType": "ADC"}, {"SeriesDescription": "*adc*"}]}
DWI: dict[str, Any] = {
    "name": "DWI",
    "any": [{"DiffusionBValue": [800, None]}],
    "phase": "DiffusionBValue=max",
}


def read(*channels: dict[str, Any], **more: Any) -> Channels:
    found = read_channels(Reader("b", "medseg", {"channels": list(channels), **more}), len(channels), {})
    assert found is not None
    return found


def channel(content: dict[str, Any], **changes: Any) -> Channel:
    return read(content | changes).each[0]


def series(
    description: str,
    number: int = 1,
    *,
    modality: str = "MR",
    place: int = 1,
    slices: int = 20,
    mm: float = 3.0,
    moment: str = "",
    **says: str,
) -> ChannelCandidate:
    def values(keyword: str) -> tuple[str, ...]:
        text = description if keyword == "SeriesDescription" else says.get(keyword, "")
        return tuple(text.split("\\")) if text else ()

    stack = cast(Stack, None)  # matching does not look at it
    return ChannelCandidate(
        stack, f"1.{number}", number, description, modality, place, f"phase {place}", slices, mm, moment, values
    )


@pytest.mark.parametrize(
    ("wanted", "one", "fits", "unknown"),
    [
        (T1C, series("Ax T1 GD", ContrastBolusAgent="Gadovist"), 0, ()),
        (T1C, series("Ax T1 GD"), 0, ("ContrastBolusAgent",)),  # absent is not known, not no
        (T1C, series("Ax T1 GD", ContrastBolusAgent="NONE"), None, ()),  # said to be none
        (T1C, series("t1_mprage", ContrastBolusAgent="Gadovist"), 1, ()),
        (T1C, series("t1_flair", ContrastBolusAgent="Gadovist"), None, ()),  # barred
        (T1C, series("", ContrastBolusAgent="Gadovist"), 0, ("SeriesDescription",)),
        (T1C, series("T1 GD", modality="CT", ContrastBolusAgent="x"), None, ()),
        (T1C, series("T1 GD", modality="", ContrastBolusAgent="x"), 0, ()),  # no modality: not known, and not barred
        (T1, series("t1_mprage"), 0, ()),
        (T1, series("t1_mprage", ContrastBolusAgent="Gadovist"), None, ()),
        (FLAIR, series("T2 Dark-Fluid"), 0, ()),
        (FLAIR, series("t2", InversionTime="2500", EchoTime="120"), 1, ()),
        (FLAIR, series("t2", InversionTime="2500", EchoTime="12"), None, ()),
        (FLAIR, series("t2", EchoTime="120"), 1, ("InversionTime",)),
        (FLAIR, series("t2", EchoTime="long"), None, ()),  # no number: not known
        (FLAIR, series("t2"), None, ()),  # nothing known holds
        (ADC, series("x", ImageType="DERIVED\\PRIMARY\\DIFFUSION\\ADC"), 0, ()),
        (ADC, series("ep2d_ADC", ImageType="DERIVED\\PRIMARY\\NADC"), 1, ()),
        (DWI, series("x", DiffusionBValue="1000"), 0, ()),
        (DWI, series("x", B_value="1000"), 0, ()),  # as Siemens writes it
        (DWI, series("x", DiffusionBValue="50"), None, ()),
        (FLAIR, series("x", InversionTimes="2500", EffectiveEchoTime="90"), 1, ()),  # as enhanced objects write it
        (DWI, series("b1000"), None, ()),  # a b-value that no attribute tells
        ({"name": "CT", "modality": "CT"}, series("x", modality="CT"), 0, ()),
        ({"name": "CT", "modality": "CT"}, series("x", modality=""), None, ()),
    ],
)
def test_a_series_against_a_channel(
    wanted: dict[str, Any], one: ChannelCandidate, fits: int | None, unknown: tuple[str, ...]
) -> None:
    judged = judge(one, channel(wanted))
    assert (judged.alternative, judged.unknown) == (fits, unknown)
    assert judged.why
    assert all(keyword in judged.why for keyword in unknown)


def chosen(content: dict[str, Any], *candidates: ChannelCandidate, **changes: Any) -> int | str:
    """The number of the series that is chosen, else how many are tied."""
    found = choose(channel(content, **changes), candidates)
    return f"{len(found.tied)} fit" if found.chosen is None else found.chosen.series_uid


GD = {"ContrastBolusAgent": "Gadovist"}


@pytest.mark.parametrize(
    ("wanted", "candidates", "expected"),
    [
        (FLAIR, [series("t2", 1), series("flair", 2)], "1.2"),
        (FLAIR, [series("t2", 1)], "0 fit"),
        (FLAIR, [series("flair", 1), series("flair", 2)], "2 fit"),
        # the first alternative fits two, the second one
        (FLAIR, [series("flair", 1), series("flair", 2, InversionTime="2000", EchoTime="90")], "1.2"),
        # one of which all is known goes before one of which not
        (T1C, [series("t1 gd", 1), series("t1 gd", 2, **GD)], "1.2"),
        (T1C, [series("t1 gd", 1), series("t1 gd", 2)], "2 fit"),
        (FLAIR | {"prefer": ["most_slices"]}, [series("flair", 1, slices=9), series("flair", 2)], "1.2"),
        (FLAIR | {"prefer": ["thinnest"]}, [series("flair", 1, mm=1.0), series("flair", 2)], "1.1"),
        (FLAIR | {"prefer": ["latest"]}, [series("flair", 1, moment="2024 2"), series("flair", 2)], "1.1"),
        (FLAIR | {"prefer": ["latest"]}, [series("flair", 1), series("flair", 2)], "2 fit"),
        (
            FLAIR | {"prefer": ["ImageType:PRIMARY", "most_slices"]},
            [series("flair", 1, ImageType="DERIVED\\SECONDARY", slices=99), series("flair", 2, ImageType="X\\PRIMARY")],
            "1.2",
        ),
        (FLAIR | {"prefer": ["ImageType:PRIMARY"]}, [series("flair", 1), series("flair", 2)], "2 fit"),
    ],
)
def test_the_one_of_a_study(wanted: dict[str, Any], candidates: list[ChannelCandidate], expected: str) -> None:
    assert chosen(wanted, *candidates) == expected


def dynamic(*values: str, keyword: str = "DiffusionBValue") -> list[ChannelCandidate]:
    return [series("dwi", 1, place=n, **{keyword: value}) for n, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("phase", "candidates", "place"),
    [
        ("DiffusionBValue=max", dynamic("50", "400", "800"), 3),
        ("DiffusionBValue=min", dynamic("50", "400", "800"), 1),
        ("DiffusionBValue=400", dynamic("50", "400", "800"), 2),
        ("DiffusionBValue=500", dynamic("50", "400", "800"), None),
        ("DiffusionBValue=max", dynamic("800", "800"), None),
        ("DiffusionBValue=max", dynamic("50", ""), None),  # of one volume the b-value is not known
        ("DiffusionBValue=max", dynamic("50", "800", keyword="B_value"), 2),
        ("first", dynamic("", "", ""), 1),
        ("last", dynamic("", "", ""), 3),
        ("2", dynamic("", "", ""), 2),
        ("4", dynamic("", "", ""), None),
    ],
)
def test_a_volume_of_a_series(phase: str, candidates: list[ChannelCandidate], place: int | None) -> None:
    wanted = channel({"name": "X", "any": [{"SeriesDescription": "dwi"}], "phase": phase})
    found = choose(wanted, candidates)
    assert (found.chosen and found.chosen.place) == place
    if place is None and phase != "DiffusionBValue=max":
        assert "1.1" in found.why and phase in found.why


def test_names_alone_are_whole_words() -> None:
    t1, t2, flair, ct = by_names(["T1", "T2", "FLAIR", "CT"]).each
    candidates = [series("t1_mprage", 1), series("T2w tse", 2), series("ax t2", 3), series("t2_FLAIR", 4)]
    assert choose(t1, candidates).chosen is candidates[0]
    assert choose(flair, candidates).chosen is candidates[3]
    assert len(choose(t2, candidates).tied) == 2  # which a person must say
    assert choose(ct, [*candidates, series("x", 9, modality="CT")]).chosen


def test_defaults() -> None:
    found = read(T1C | {"optional": True}, FLAIR, registration="done")
    assert found.reference == "FLAIR"  # the first that is always there
    assert found.registration is Registration.DONE
    assert read(T1C, FLAIR, reference="FLAIR").reference == "FLAIR"
    assert read_channels(Reader("b", "medseg", {}), 1, {}) is None


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"name": "A", "any": [{"NoSuchKeyword": ["x"]}]}, "NoSuchKeyword"),
        ({"name": "A", "any": [{"PatientName": ["x"]}]}, "PatientName"),
        ({"name": "A", "any": [{"SeriesDate": ["2024*"]}]}, "SeriesDate"),
        ({"name": "A", "any": [{"AccessionNumber": ["1"]}]}, "AccessionNumber"),
        ({"name": "A", "any": [{"RequestAttributesSequence": "present"}]}, "RequestAttributesSequence"),
        ({"name": "A", "any": [{"EchoTime": [70, 20]}]}, "EchoTime"),
        ({"name": "A", "any": [{"EchoTime": [None, None]}]}, "EchoTime"),
        ({"name": "A", "any": [{"EchoTime": True}]}, "EchoTime"),
        ({"name": "A", "any": [{"EchoTime": []}]}, "EchoTime"),
        ({"name": "A", "any": [{"not": {"EchoTime": {}}}]}, "EchoTime"),
        ({"name": "A"}, "any"),
        ({"name": "A=B", "modality": "MR"}, "name"),
        ({"name": "A", "modality": "MR", "prefer": ["newest"]}, "prefer"),
        ({"name": "A", "modality": "MR", "phase": "max"}, "phase"),
        ({"name": "A", "modality": "MR", "phase": "Bvalue=max"}, "phase"),
        ({"name": "A", "modality": "MR", "phase": "0"}, "phase"),
        ({"name": "A", "modality": "MR", "wanted": True}, "wanted"),
        ({"name": "A", "modality": "MR", "optional": True}, "reference"),
    ],
)
def test_refused_by_its_key(content: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidBundle, match=key):
        read(content)


def test_as_many_as_the_network_has(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="2 input channels, found 1"):
        read_channels(Reader("b", "medseg", {"channels": [T1]}), 2, {})
    with pytest.raises(InvalidBundle, match="different names"):
        read(T1, T1)
    with pytest.raises(InvalidBundle, match="reference"):
        read(T1, FLAIR, reference="T2")
    with pytest.raises(InvalidBundle, match="expected a share from"):
        read(T1, FLAIR, coverage=0.1)
    with pytest.raises(InvalidBundle, match="same_frame or done"):
        read(T1, FLAIR, registration="atlas")
    bundle = load_bundle(zoo.brats_like(tmp_path / "bundle"))
    assert bundle.channels is not None
    assert bundle.channels.names == ("T1", "T1c", "FLAIR")
