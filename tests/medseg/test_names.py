"""Names made of data: one part of a path each, of an allow-list, and no two values share one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.names import LONGEST_ON_DISK, beside_name, file_name, uid_name
from tests.writing import NASTY, hostile

ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~-]{0,99}")


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.2", "2.25.329800735698586629295641978511506172918", "0" * 64])
def test_a_uid_stays_as_it_is(uid: str) -> None:
    assert uid_name(uid) == uid


@pytest.mark.parametrize("name", ["spleen_ct", "wholeBody_ct_segmentation", "sub-01_T1w", "a.b", "x" * 100])
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert file_name(name) == name


@pytest.mark.parametrize(
    "name", [*(name for name in NASTY if name not in ("1.2.3", "a", "A")), "Aux", "lpt1.nii", "a."]
)
def test_any_other_is_told_by_a_hash(name: str) -> None:
    assert file_name(name) != name
    assert "~" in file_name(name)
    assert re.fullmatch(r"x[0-9a-f]{40}", uid_name(name))


@given(hostile)
def test_a_name_is_one_part_of_a_path_from_an_allow_list(value: str) -> None:
    for name in (uid_name(value), file_name(value)):
        assert ALLOWED.fullmatch(name)
        assert name == os.path.basename(name)  # noqa: PTH119
        assert name.strip(".") == name
        assert (Path("/a") / name).parent == Path("/a")


@given(st.lists(hostile, min_size=2, max_size=20, unique=True))
def test_no_two_values_share_a_name(values: list[str]) -> None:
    uids, names = ([make(value) for value in values] for make in (uid_name, file_name))
    assert len({name.casefold() for name in uids}) == len(values)  # on file systems that know no case, too
    assert len(set(names)) == len(values)
    again = {file_name(name) for name in names}  # what stands for another value is nobody's own name
    assert again.isdisjoint(set(names) - set(values))


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_a_name_beside_another_is_that_name_or_cut(name: bytes) -> None:
    made = os.fsencode(beside_name(os.fsdecode(name), "-medseg"))
    assert len(made) <= LONGEST_ON_DISK
    assert made == name + b"-medseg" or (len(name) > LONGEST_ON_DISK - 7 and made.startswith(name[:200]))
