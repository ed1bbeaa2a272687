"""A cohort as a table: a CSV or Parquet file with a row for each study.

    path,id,bundle,T1,FLAIR            path: a file, folder, zip or DICOMDIR, from the table's folder; needed unless
    s1/,patient-01,,,                  channels are. id: the result folder's name. bundle: instead of that of all.
    ,patient-02,glioma,t1.nii,f.nii    Any other column is a channel by its name: a path, or a series' UID.

What is wrong with a row is the failure of that row; what is wrong with the table is told before anything begins.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from medseg.cohort.items import CohortItem
from medseg.cohort.scan import Scan, scan
from medseg.dicom.nifti import is_nifti
from medseg.errors import InputError, MedsegError, NoSuchInput
from medseg.progress import Cancelled, never

ENDINGS: Final = (".csv", ".tsv", ".parquet")
_KNOWN: Final = ("path", "id", "bundle")
MOST_ROWS: Final = 1_000_000


class ListedTwice(InputError):
    """Two rows of a table name the same."""

    code = "listed_twice"


def is_table(path: Path) -> bool:
    """Whether a path names a table of studies, by its ending."""
    return path.name.lower().endswith(ENDINGS)


def read_table(path: Path, channels: Sequence[str], *, cancelled: Cancelled = never) -> Scan:
    """The studies that a table lists.

    channels: those of the bundles that may be used; a column of another name is a mistake.
    Raises NoSuchInput, InputError for a table that cannot be read, Interrupted.
    """
    columns, rows = _read(path)
    known = {name.casefold(): name for name in (*_KNOWN, *channels)}
    names = [known.get(column.strip().casefold()) for column in columns]
    for column, name in zip(columns, names, strict=True):
        if name is None:
            listed = ", ".join((*_KNOWN, *channels))
            raise InputError(f"{path}: column {column!r}: expected {listed}")
    if "path" not in names and not set(names) & set(channels):
        raise InputError(f"{path}: no column `path`: found {', '.join(columns) or 'none'}")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise InputError(f"{path}: column {doubled[0]!r} stands there twice")
    items: list[CohortItem] = []
    unreadable: list[tuple[str, MedsegError]] = []
    row_of: dict[object, int] = {}
    passed_over = 0
    for number, values in enumerate(rows, 2):  # as a text editor counts lines
        row = {name: value.strip() for name, value in zip(names, values, strict=True) if name and value.strip()}
        if not row:
            continue
        where = f"{path.name}, row {number}"
        found = _of_row(path, row, len(channels), cancelled)
        passed_over += found.passed_over
        unreadable += [(where, error) for _, error in found.unreadable]
        for item in found.items:
            before = row_of.setdefault((item.study_uid, item.nifti, item.bundle, item.channels), number)
            if before == number:
                items.append(item)
            else:
                unreadable.append((where, ListedTwice(f"{where}: {_what(item)} is that of row {before}, too")))
    return Scan(tuple(items), passed_over, tuple(unreadable))


def _what(item: CohortItem) -> str:
    return f"study {item.study_uid}" if item.study_uid else f"file {item.nifti}"


def _of_row(table: Path, row: Mapping[str, str], channels: int, cancelled: Cancelled) -> Scan:
    """What one row names."""
    given = tuple((name, value) for name, value in row.items() if name not in _KNOWN)
    files = [table.parent / value for _, value in given if is_nifti(Path(value))]
    path = table.parent / row["path"] if "path" in row else None
    if path is None and not files:
        return Scan((), unreadable=(("", InputError(f"{table.name}: no path, and no file for a channel")),))
    if path is None or is_nifti(path):
        file = path or files[0]
        if not file.exists():
            return Scan((), unreadable=(("", NoSuchInput(file)),))
        found = Scan((CohortItem(file.name[: file.name.lower().rindex(".nii")], nifti=file),))
    else:
        found = scan([path], channels=channels, cancelled=cancelled)
    said = [replace(item, bundle=row.get("bundle"), channels=given, folder=table.parent) for item in found.items]
    if "id" in row:
        several = len(said) > 1
        said = [replace(item, name=f"{row['id']}_{item.name}" if several else row["id"]) for item in said]
    return replace(found, items=tuple(said))


def _read(path: Path) -> tuple[list[str], Iterator[Sequence[str]]]:
    """Names of columns, and the values of each row as texts. Raises NoSuchInput, InputError."""
    if not path.exists():
        raise NoSuchInput(path)
    try:
        return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a table that can be read: {error}") from error


def _csv(path: Path) -> tuple[list[str], Iterator[Sequence[str]]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count) if any(mark in first for mark in "\t;,") else ","
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    if not rows or len(rows) > MOST_ROWS:
        raise ValueError("no row at all" if not rows else f"more than {MOST_ROWS} rows")
    width = len(rows[0])
    for number, row in enumerate(rows[1:], 2):
        if len(row) > width:
            raise ValueError(f"row {number} has {len(row)} values, expected {width}")
    return rows[0], iter([[*row, *[""] * (width - len(row))] for row in rows[1:]])


def _parquet(path: Path) -> tuple[list[str], Iterator[Sequence[str]]]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), iter(zip(*columns, strict=True))
