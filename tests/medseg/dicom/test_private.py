"""Of private elements a header keeps what tells volumes apart, under its creator."""

from __future__ import annotations

import struct

from pydicom import Dataset

from medseg.dicom.phantom import make_series
from medseg.dicom.private import private_traits
from tests.medseg.dicom.made import instance_of


def made() -> Dataset:
    return make_series(shape=(1, 4, 4), modality="MR")[0]


def test_known_elements_stay_and_all_others_go() -> None:
    dataset = made()
    siemens = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    siemens.add_new(0x0C, "IS", "800")
    siemens.add_new(0x16, "DS", "184.87")
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"x" * 5000)
    header = instance_of(dataset).header
    private = [tag for tag in header.keys() if tag.is_private]  # noqa: SIM118
    assert [f"{tag:08X}" for tag in private] == ["00190010", "0019100C"]
    assert private_traits(header) == {"B_value": "800"}


def test_a_block_may_lie_anywhere_and_a_vr_may_be_lost() -> None:
    dataset = made()
    dataset.add_new(0x20010010, "LO", "Somebody else")
    dataset.add_new(0x20010011, "LO", "Philips Imaging DD 001")
    dataset.add_new(0x20011003, "FL", 5.0)  # of somebody else
    dataset.add_new(0x20011103, "UN", struct.pack("<f", 1000.0))
    dataset.add_new(0x20011108, "UN", b"2 ")
    assert private_traits(instance_of(dataset).header) == {"Diffusion B-Factor": "1000.0", "Phase Number": "2"}


def test_without_a_creator_nothing_is_known() -> None:
    dataset = made()
    dataset.add_new(0x20011003, "FL", 1000.0)
    assert private_traits(instance_of(dataset).header) == {}
