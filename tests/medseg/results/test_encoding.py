"""Elements of a source that are copied into a result."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag

from medseg.results.encoding import copy_element, raw_element

SEX, NAME, STUDY = Tag(0x00100040), Tag(0x00100010), Tag(0x0020000D)


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize(
    ("tag", "vr", "given", "expected"),
    [
        (SEX, "CS", b"M\0", b"M "),  # padded with NUL, as some write it
        (SEX, "CS", b"M ", b"M "),
        (NAME, "PN", b"Doe^J\0", b"Doe^J "),
        (NAME, "PN", b"Doe^Jo\0\0", b"Doe^Jo"),
        (STUDY, "UI", b"1.2.3\0", b"1.2.3\0"),
    ],
)
def test_padding_is_the_standards_whether_or_not_a_value_was_looked_at(
    tag: BaseTag, vr: str, given: bytes, expected: bytes, looked_at: bool
) -> None:
    source, target = Dataset(), Dataset()
    source[tag] = raw_element(tag, vr, given)
    if looked_at:
        assert source[tag].value is not None
    copy_element(source, target, keyword_for_tag(tag))
    file = BytesIO()
    target.save_as(file, implicit_vr=False, little_endian=True)
    file.seek(0)
    assert read_dataset(file, False, True).get_item(tag).value == expected
