"""A new file holds what was written, however it was cut up and whatever the file system allows."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.receive import direct_file
from gateway.receive.direct_file import BLOCK, HEAD, PIECE, NewFile

EDGES = (0, 1, BLOCK - 1, BLOCK, HEAD, PIECE - 1, PIECE, PIECE + 1)
CONTENT = os.urandom(3 * PIECE)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
    elif not Path("/dev/shm").is_dir():
        pytest.skip("no file system in memory here")
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
            yield Path(made)


def written(path: Path, head: bytes, fragments: list[bytes]) -> NewFile:
    with ThreadPoolExecutor(1) as beside:
        file = NewFile(str(path), beside)
        file.begin(head)
        for fragment in fragments:
            file.write(memoryview(fragment))
        file.end()
        file.sync()
        file.sha256()
        file.close()
    return file


def assert_holds(path: Path, file: NewFile, head: bytes, data: bytes) -> None:
    assert path.read_bytes() == head + data
    assert file.sha256() == hashlib.sha256(data).hexdigest()
    assert (file.offset, file.size, file.first) == (len(head), len(data), data[:HEAD])


numbers = count()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.integers(0, 500),
    total=st.one_of(st.sampled_from(EDGES), st.integers(0, 3 * PIECE - 500)),
    fragment=st.sampled_from([4094, 16378, 131066, 2 * PIECE]),
)
def test_every_byte_in_its_place(folder: Path, head: int, total: int, fragment: int) -> None:
    data, path = CONTENT[head : head + total], folder / str(next(numbers))
    file = written(path, CONTENT[:head], [data[at : at + fragment] for at in range(0, total, fragment)])
    assert_holds(path, file, CONTENT[:head], data)
    path.unlink()


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(FileExistsError), ThreadPoolExecutor(1) as beside:
        NewFile(str(tmp_path / "there"), beside)
    assert (tmp_path / "there").read_bytes() == b"mine"


def writing(monkeypatch: pytest.MonkeyPatch, how: Callable[[int, memoryview], int]) -> None:
    monkeypatch.setattr(direct_file.os, "write", how)


def test_a_disk_of_larger_blocks_is_written_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def refuses(file: int, data: memoryview) -> int:
        if direct_file._is_direct(file):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, data)

    writing(monkeypatch, refuses)
    file = written(tmp_path / "file", b"head", [CONTENT])
    assert_holds(tmp_path / "file", file, b"head", CONTENT)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    writing(monkeypatch, lambda file, data: real(file, data[: min(len(data), 3 * BLOCK)]))
    file = written(tmp_path / "file", b"head", [CONTENT[:PIECE]])
    assert_holds(tmp_path / "file", file, b"head", CONTENT[:PIECE])


def test_a_full_disk_is_told_and_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ThreadPoolExecutor(1) as beside:
        file = NewFile(str(tmp_path / "file"), beside)
        file.begin(b"head")
        opened = file.file
        writing(monkeypatch, full)
        file.write(memoryview(CONTENT)[:1000])
        with pytest.raises(OSError, match="No space"):
            file.end()
        file.close()
        file.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)
