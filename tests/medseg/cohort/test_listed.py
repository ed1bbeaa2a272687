"""A cohort as a table: what it may say, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from medseg.cohort.listed import read_table
from medseg.errors import InputError, NoSuchInput
from tests.medseg.cohort.test_scan import named, study, volume


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8-sig")
    return folder / name


def test_rows_name_studies_volumes_bundles_and_channels(tmp_path: Path) -> None:
    uid = study(tmp_path / "s")
    volume(tmp_path / "v" / "t1.nii.gz")
    volume(tmp_path / "v" / "flair.nii.gz")
    rows = "s;;brain;1.2.3;", f"{tmp_path / 'v' / 't1.nii.gz'};p 2;;;", ";p3;;v/t1.nii.gz;v/flair.nii.gz"
    text = "\n".join(("Path;ID;bundle;T1;FLAIR", *rows, "", ""))
    found = read_table(table(tmp_path, text), ["T1", "FLAIR"])
    assert not found.unreadable
    first, second, third = found.items
    assert (first.study_uid, first.bundle, first.channels) == (uid, "brain", (("T1", "1.2.3"),))
    assert (second.name, second.nifti, second.bundle) == ("p 2", tmp_path / "v" / "t1.nii.gz", None)
    assert third.channels == (("T1", "v/t1.nii.gz"), ("FLAIR", "v/flair.nii.gz"))
    assert named(found.items)[0] == uid


def test_a_parquet_file_is_a_table_too(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii")
    parquet.write_table(pyarrow.table({"path": ["a.nii"], "id": [7]}), tmp_path / "list.parquet")
    (item,) = read_table(tmp_path / "list.parquet", []).items
    assert item.name == "7"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file,id\na,b\n", "column 'file': expected path, id, bundle"),
        ("id,bundle\na,b\n", "no column `path`"),
        ("path,id,path\na,b,c\n", "column 'path' stands there twice"),
        ("path,id\na,b,c\n", "row 2 has 3 values, expected 2"),
        ('path,id\n"a,b\n', "not a table that can be read"),
        ("", "no row at all"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InputError) as raised:
        read_table(table(tmp_path, text), [])
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    for name in ("list.csv", "list.parquet"):
        with pytest.raises(InputError, match="not a table"):
            read_table(tmp_path / name, [])
    with pytest.raises(NoSuchInput):
        read_table(tmp_path / "gone.csv", [])


def test_what_is_wrong_with_a_row_is_that_rows_failure(tmp_path: Path) -> None:
    uid = study(tmp_path / "a")
    study(tmp_path / "b")
    volume(tmp_path / "v.nii")
    found = read_table(table(tmp_path, "path,id\na,1\nb,2\nv.nii,3\nv.nii,4\ngone,5\n"), [])
    assert [item.name for item in found.items] == ["1", "3"]
    assert [(where, error.code) for where, error in found.unreadable] == [
        ("list.csv, row 3", "listed_twice"),
        ("list.csv, row 5", "listed_twice"),
        ("list.csv, row 6", "no_such_input"),
    ]
    assert f"study {uid} is that of row 2, too" in str(found.unreadable[0][1])
