"""A file is read for its SHA-256 once, and again whenever it may be another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.bundle import digests

NEW = b"new weights"


def rewrite(file: Path) -> None:
    """Other bytes of the same number, and the time of before."""
    about = file.stat()
    file.write_bytes(NEW)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def replace(file: Path) -> None:
    about = file.stat()
    other = file.with_name("other")
    other.write_bytes(NEW)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(file)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    whole = hashlib.file_digest

    def counted(stream, name):  # type: ignore[no-untyped-def]
        read.append(1)
        return whole(stream, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    monkeypatch.setattr(digests, "_known", {})
    return read


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_file_that_stays_is_read_once(
    change: Callable[[Path], None], reads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"old weights")
    assert [digests.file_digest(file) for _ in range(3)] == [hashlib.sha256(b"old weights").hexdigest()] * 3
    assert len(reads) == 1
    change(file)
    assert digests.file_digest(file) == hashlib.sha256(NEW).hexdigest()


def test_a_file_that_has_just_changed_is_read_again(reads: list[int], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(NEW)
    digests.file_digest(file)
    digests.file_digest(file)
    assert len(reads) == 2
