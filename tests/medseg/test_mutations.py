"""Whatever bytes a file has: it is read, or refused by an error of ours; nothing is left outside the output folder."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import is_nifti, read_nifti
from medseg.dicom.sources import find_instances
from medseg.errors import MedsegError
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.plan import plan, plan_nifti
from medseg.job.run import run
from tests.gateway.faults.report import report
from tests.medseg.bundle import zoo
from tests.medseg.mutations import KINDS, Input, mutated

LONGEST_S = 10.0


class Trials:
    """Mutated inputs one by one in a folder of their own, and what came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.input, self.out = folder, folder / "a/b/c/d/input", folder / "a/b/c/d/out"
        self.input.mkdir(parents=True)
        self.out.mkdir()
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.longest_s = 0.0  # of the processor: the machine may have other work
        self._there: dict[str, bytes] = {}

    @contextmanager
    def trial(self, kind: str, case: int) -> Iterator[Path]:
        """The path of an input; what happens there is noted."""
        given = mutated(kind, case, self.folder.parent / "made")
        self._lay(given)
        began_s = time.process_time()
        try:
            yield self.input / given.path
        except MedsegError as error:
            self.outcomes[error.code] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure of ours
            self.failures.append(f"{kind} {case}: {type(error).__name__}: {error}")
        took_s = time.process_time() - began_s
        self.longest_s = max(self.longest_s, took_s)
        if took_s > LONGEST_S:
            self.failures.append(f"{kind} {case}: took {took_s:.1f} s")
        self._look_outside(kind, case)

    def _lay(self, given: Input) -> None:
        for name in self._there.keys() - given.files.keys():
            (self.input / name).unlink()
        for name, content in given.files.items():
            if self._there.get(name) != content:
                path = self.input / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self._there = given.files

    def _look_outside(self, kind: str, case: int) -> None:
        expected = {self.input / name for name in self._there}
        found = {Path(root, name) for root, _, names in os.walk(self.folder) for name in names}
        written = {path for path in found if path.is_relative_to(self.out)}
        if found - written != expected:
            self.failures.append(f"{kind} {case}: files outside the output folder: {(found - written) ^ expected}")
        if written:
            shutil.rmtree(self.out)
            self.out.mkdir()

    def read(self, kind: str, case: int) -> None:
        """Headers, geometry, and a plane of each stack."""
        with self.trial(kind, case) as path:
            if is_nifti(path):
                read_nifti(path).slices[0].read()
            else:
                for series in find_instances(path).series():
                    for stack in classify(series, assume_frame_of_reference=True, min_slices=1).stacks:
                        stack.slices[0].read()
            self.outcomes["read"] += 1

    def segment(self, kind: str, case: int, bundle: Bundle) -> None:
        """As the command line does: each job of a plan, to its results."""
        with self.trial(kind, case) as path:
            if is_nifti(path):
                planned = plan_nifti(path, (bundle,), explicit=True)
                formats = frozenset({Format.NIFTI})
            else:
                series = find_instances(path).series()
                planned = plan(series, (bundle,), explicit=True, assume_frame_of_reference=True)
                formats = frozenset({Format.SEG, Format.SR} if case % 8 == 0 else {Format.NIFTI})
            for job in planned.jobs:
                run(job, self.out, formats, settings=Settings(engine="torch"))
            self.outcomes["result" if planned.jobs else "refused"] += 1


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    logging.disable(logging.CRITICAL)
    (tmp_path / "made").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Trials(tmp_path / "trials")
    logging.disable(logging.NOTSET)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(zoo.threshold(tmp_path / "threshold"))


SLOW, FULL = pytest.mark.slow, pytest.mark.reliability


@pytest.mark.parametrize(
    "count",
    [75, pytest.param(1500, marks=SLOW), pytest.param(15_000, marks=FULL)],
    ids="{} of a kind".format,
)
def test_mutated_inputs_are_read_or_refused(trials: Trials, count: int) -> None:
    began_s = time.monotonic()
    for kind in KINDS:
        for case in range(count):
            trials.read(kind, case)
    assert not trials.failures, "\n".join(trials.failures)
    assert trials.outcomes["read"] > count / 5  # most mutations are not deep
    report(
        "mutated inputs to reading",
        began_s,
        f"{count * len(KINDS)} mutated files ({', '.join(KINDS)}; seeds 0 to {count - 1} of each)",
        f"{trials.outcomes['read']} read, the others refused by an error of ours; no file outside the output folder; "
        f"the longest took {trials.longest_s:.1f} s of the processor",
        outcomes=dict(trials.outcomes),
    )


@pytest.mark.parametrize(
    "results", [20, pytest.param(200, marks=SLOW), pytest.param(5000, marks=FULL)], ids="{} results".format
)
def test_mutated_inputs_to_a_result(trials: Trials, bundle: Bundle, results: int) -> None:
    began_s = time.monotonic()
    case = first = 1_000_000
    while trials.outcomes["result"] < results:
        for kind in KINDS:
            trials.segment(kind, case, bundle)
        case += 1
    assert not trials.failures, "\n".join(trials.failures)
    report(
        "mutated inputs to a result",
        began_s,
        f"{(case - first) * len(KINDS)} mutated files ({', '.join(KINDS)}; seeds {first} to {case - 1} of each), "
        "through a threshold bundle",
        f"{trials.outcomes['result']} results, the others refused by an error of ours; no file outside the output "
        f"folder; the longest took {trials.longest_s:.1f} s of the processor",
        outcomes=dict(trials.outcomes),
    )
