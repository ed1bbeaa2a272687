"""What a cohort has done: a file for each item, from which every table is made.

    OUT/.medseg/cohort.json               which form of all this it is, and a secret of this output
    OUT/.medseg/finished/NAME.json        an item's results and failures, and what they are of

A record is written once all results of its item are on disk, and appears whole. It counts while its item's files are
those they were, the bundles and settings are the same, and its results lie where it says.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from medseg.errors import OutputNotWritable, UsageError
from medseg.job.folder import RECORD
from medseg.texts import to_json

STATE: Final = ".medseg"
PART: Final = ".part-"  # how files there begin that are being written
_FORM: Final = 1
_LEFT_S: Final = 3600.0  # nobody writes one of these files for so long


class OtherOutput(UsageError):
    """The output folder holds what another version, bundle or settings made."""

    code = "other_output"


class OtherLayout(OtherOutput):
    """What the output folder holds lies otherwise."""

    code = "other_layout"


@dataclass(frozen=True)
class Failure:
    """A study, series or input without a result. kind: "refused", where it cannot be segmented by what it is, or
    "failed". code, message: as `error` in docs/json.md; exit_code: what a run of it alone would end with."""

    study_uid: str
    series_uid: str
    bundle: str
    kind: str
    code: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class Finished:
    """An item that has been worked on.

    stamp: of its files (`CohortItem.stamp`). settings: of bundles and everything else that results depend on. results:
    each `result.json`, with `folder` within the output. passed_over: series of a study with results that have none.
    patient, day: of the study, hidden (`medseg.cohort.study`). lasting: False where the next run is to try again.
    """

    name: str
    source: str
    stamp: str
    settings: str
    results: tuple[Mapping[str, Any], ...] = ()
    failures: tuple[Failure, ...] = ()
    passed_over: tuple[Failure, ...] = ()
    patient: str = ""
    day: int | None = None
    seconds: float = 0.0
    lasting: bool = True

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Finished:
        """Raises TypeError, KeyError where it is not one."""
        failures = tuple(Failure(**one) for one in record["failures"])
        passed_over = tuple(Failure(**one) for one in record["passed_over"])
        return cls(**{**record, "results": tuple(record["results"]), "failures": failures, "passed_over": passed_over})


class Output:
    """The output folder of a cohort."""

    def __init__(self, folder: Path) -> None:
        """Raises OutputNotWritable, OtherOutput where another version made it."""
        self.folder, self._state = folder, folder / STATE
        self._finished = self._state / "finished"
        self.claims = self._state / "claims"
        self._settings = self._state / "settings.json"
        try:
            self._finished.mkdir(parents=True, exist_ok=True)
            self.secret = self._opened()
        except OSError as error:
            raise OutputNotWritable(folder, error.strerror or str(error)) from error

    def _opened(self) -> bytes:
        path = self._state / "cohort.json"
        if not path.exists():
            self.write(path, {"layout": _FORM, "secret": secrets.token_hex(16)}, first=True)
        try:
            record = json.loads(path.read_text("utf-8"))
            layout, secret = record["layout"], bytes.fromhex(record["secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise OtherOutput(f"{self.folder}: {path.name} in {STATE} cannot be read") from error
        if layout != _FORM:
            raise OtherOutput(
                f"{self.folder} holds a cohort in form {layout}, expected {_FORM}, as this version makes it"
            )
        return secret

    def write(self, path: Path, record: Mapping[str, Any], *, first: bool = False) -> None:
        """A file that appears whole, on disk. first: and only where there is none. Raises OSError."""
        with tempfile.NamedTemporaryFile(dir=self._state, prefix=PART, delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(to_json(record))
                file.flush()
                os.fsync(file.fileno())
                if first:
                    with suppress(FileExistsError):
                        os.link(temporary, path)
                else:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def same_identity(self, key: str) -> None:
        """See that results here are of patients, or of pseudonyms under one key: they are never mixed.

        key: its fingerprint, empty where results say who they are of. Raises OtherOutput.
        """
        before = self._made_with()
        if before is None or before.get("key", "") == key:
            return
        if not before.get("key"):
            raise OtherOutput(f"{self.folder} holds results that say who they are of: choose another folder")
        how = "under another key" if key else "and this run asks for none"
        raise OtherOutput(f"{self.folder} holds de-identified results, {how}: use the same key, or another folder")

    def _made_with(self) -> dict[str, Any] | None:
        """What results here are made with; None where there are none."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self._settings.read_text("utf-8")))
        return None

    def settle(self, settings: str, bundles: Mapping[str, str], layout: str, *, overwrite: bool, key: str = "") -> None:
        """Note what results here are made with, and how they lie. Raises OtherOutput where others are there, and may
        not be replaced, or lie otherwise. key: see `same_identity`."""
        self.same_identity(key)
        said: dict[str, Any] = {"settings": settings, "bundles": dict(bundles), "layout": layout, "key": key}
        before = self._made_with() or said
        lies = before.get("layout", "folders")
        if lies != layout:
            raise OtherLayout(f"{self.folder} has the layout {lies}, asked for is {layout}")
        if before.get("settings") != settings and not overwrite:
            changed = [name for name, digest in bundles.items() if before["bundles"].get(name, digest) != digest]
            why = f"bundle {', '.join(changed)} has changed since" if changed else "they were made with other settings"
            raise OtherOutput(f"{self.folder} holds results of another run, and {why}")
        try:
            self.write(self._settings, said)
        except OSError as error:
            raise OutputNotWritable(self.folder, error.strerror or str(error)) from error

    def sweep(self, folder: Path) -> None:
        """Remove what a run that was killed left half-written of an item; whoever has claimed it may do so."""
        for left in folder.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def sweep_files(self) -> None:
        """Remove half-written files of runs that were killed; those of the last minutes may be somebody's."""
        for left in (*self.folder.glob(".*.part"), *self._state.glob(f"{PART}*")):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_S:
                    left.unlink()

    def finish(self, item: Finished) -> None:
        """Raises OutputNotWritable."""
        try:
            self.write(self._finished / f"{item.name}.json", item.record)
        except OSError as error:
            raise OutputNotWritable(self.folder, error.strerror or str(error)) from error

    def finished(self, name: str) -> Finished | None:
        """What is known of an item; None where nothing is, or it cannot be read."""
        return _read(self._finished / f"{name}.json")

    def holds(self, item: Finished) -> bool:
        """Whether every result of an item lies where it did, and its files elsewhere, too."""
        lying = [f"{one['folder']}/{RECORD}" for one in item.results]
        lying += [file for one in item.results for file in one.get("bids", {}).get("files", {}).values()]
        return all((self.folder / path).is_file() for path in lying)

    def all_finished(self) -> Iterator[Finished]:
        """All items, by their names."""
        names = (entry.name.removesuffix(".json") for entry in os.scandir(self._finished))
        items = (self.finished(name) for name in sorted(names))
        return (item for item in items if item is not None)


def _read(path: Path) -> Finished | None:
    try:
        return Finished.of(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
