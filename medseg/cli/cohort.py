"""`medseg infer` of a cohort: many studies, one table."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live

from medseg.cli import console
from medseg.cli.deidentify import name_as_told, uid_as_told
from medseg.cli.hints import with_hint
from medseg.errors import MedsegError, UsageError
from medseg.job.exits import INPUT, OK, SOME_FAILED
from medseg.job.places import named, result_folders, with_directory
from medseg.progress import Cancelled
from medseg.texts import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from medseg.bundle.bundle import Bundle
    from medseg.cohort.finished import Failure, Finished
    from medseg.cohort.items import CohortItem
    from medseg.cohort.run import Totals
    from medseg.cohort.scan import Scan
    from medseg.cohort.study import Task
    from medseg.cohort.worker import Done, Ready

_TABLES_S = 5.0  # tables are written so often, or less often where that takes long
_LINE_S = 30.0  # where there is no terminal, a line of progress as often
_LIBRARIES = ("medseg", "monai", "torch", "openvino", "numpy", "pydicom", "highdicom", "nibabel")


@dataclass(frozen=True)
class CohortOptions:
    """What belongs to a cohort alone. shard: (I, N), the I-th of N parts."""

    jobs: int | None = None
    shard: tuple[int, int] = (1, 1)
    dry_run: bool = False
    as_json: bool = False
    layout: str = "folders"

    @property
    def given(self) -> bool:
        """Whether anything was said that asks for a cohort."""
        return self.jobs is not None or self.shard != (1, 1) or self.dry_run or self.layout != "folders"


def is_wanted(paths: Sequence[Path], out: Path | None, options: CohortOptions) -> bool:
    """Whether paths are a cohort: a table, or several studies, in one path or in many; or since options say so.

    Several paths without `out`, each of one study, are none: their results lie beside them. Raises UsageError where it
    is not said where the results of others are to lie.
    """
    from medseg.cohort.listed import is_table
    from medseg.cohort.scan import hold_several, is_cohort

    if not (options.given or any(map(is_table, paths))):
        together = out is not None and hold_several(paths)
        if not (together or any(map(is_cohort, paths))):
            return False
    if len(paths) > 1 and out is None:
        raise UsageError("several paths are one cohort: name the folder of its results with -o")
    return True


def read_shard(text: str | None) -> tuple[int, int]:
    """ "I/N". Raises UsageError."""
    if text is None:
        return 1, 1
    matched = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if matched is None or not 1 <= int(matched[1]) <= int(matched[2]):
        raise UsageError(f"--shard {text!r}: expected I/N, as 3/10 for the third of ten parts")
    return int(matched[1]), int(matched[2])


def read_layout(text: str) -> str:
    """A layout's name. Raises UsageError."""
    if text not in ("folders", "bids"):
        raise UsageError(f"--layout {text!r}: expected folders or bids")
    return text


def infer_cohort(
    paths: Sequence[Path],
    task: Task,
    choices: Sequence[Sequence[Bundle]],
    options: CohortOptions,
    cancelled: Cancelled,
) -> int:
    """Segment every study and volume under the paths; the exit code. Raises Interrupted, UsageError, ResourceError."""
    from medseg.cohort.finished import Output
    from medseg.cohort.items import with_pseudonyms

    bundles = [bundle for some in choices for bundle in some]
    output = Output(task.out)
    output.same_identity(_fingerprint(task))
    output.sweep_files()
    task = replace(task, secret=output.secret)
    found = _scanned(paths, task, bundles, cancelled)
    items = _mine(found.items, options.shard)
    if task.deidentify is not None:
        items = with_pseudonyms(items, task.deidentify.pseudonyms)
    console.say(f"{len(items)} studies and volumes, {found.passed_over} files that are neither")
    command = _Command(output, task, options, found)
    return command.dry_run(items, cancelled) if options.dry_run else command.run(items, cancelled)


def _scanned(paths: Sequence[Path], task: Task, bundles: Sequence[Bundle], cancelled: Cancelled) -> Scan:
    from medseg.cohort.items import named_by_inputs, with_labels, with_own_names
    from medseg.cohort.listed import is_table
    from medseg.cohort.scan import Scan, scan

    channels = {name for bundle in bundles if bundle.channels for name in bundle.channels.names}
    most = bundles[0].image_channels if len(bundles) == 1 else 1
    tables = [path for path in paths if is_table(path)]
    scans = [_table(path, sorted(channels), cancelled, alone=len(paths) == 1) for path in tables]
    others = [path for path in {named(path): path for path in paths}.values() if not is_table(path)]
    if others:
        with console.progress("headers") as report:
            found = scan(others, channels=most, leave=task.out, on_progress=report, cancelled=cancelled)
        if len(others) > 1:
            folders = zip(map(with_directory, others), result_folders(others, task.out), strict=True)
            names = {path: folder.name for path, folder in folders}
            found = replace(found, items=tuple(named_by_inputs(found.items, names)))
        scans.append(found)
    items = with_own_names([item for one in scans for item in one.items])
    return Scan(
        tuple(with_labels(items) if task.bids else items),
        sum(one.passed_over for one in scans),
        tuple(failed for one in scans for failed in one.unreadable),
    )


def _table(path: Path, channels: Sequence[str], cancelled: Cancelled, *, alone: bool) -> Scan:
    """The studies that a table lists; one that cannot be read does not end what else is asked for."""
    from medseg.cohort.listed import read_table
    from medseg.cohort.scan import Scan
    from medseg.errors import InputError

    try:
        return read_table(path, channels, cancelled=cancelled)
    except InputError as error:
        if alone:
            raise
        return Scan((), unreadable=((shown(path), error),))


def _fingerprint(task: Task) -> str:
    return "" if task.deidentify is None else task.deidentify.pseudonyms.fingerprint


def _mine(items: Sequence[CohortItem], shard: tuple[int, int]) -> list[CohortItem]:
    """The part of a cohort that a shard has: the same in every run, whatever the other items are."""
    number, of = shard
    return [item for item in items if int(item.mark, 16) % of == number - 1]


class _Command:
    """One call of the command: what is shown, and what stands in the tables."""

    def __init__(self, output: Any, task: Task, options: CohortOptions, found: Scan) -> None:
        from medseg.cohort.study import failure_of

        self._output, self._task, self._options, self._found = output, task, options, found
        self._began = datetime.now(UTC)
        self._finished: dict[str, Finished] = {one.name: one for one in output.all_finished()}
        self._unreadable = [
            (name_as_told(name, task.deidentify), failure_of(task.told(error), "", "", None))
            for name, error in found.unreadable
        ]
        self._ready: Ready | None = None
        self._written, self._took = 0.0, 0.0

    def run(self, items: Sequence[CohortItem], cancelled: Cancelled) -> int:
        from medseg.cohort.run import CohortRun, workers_for

        for name, failure in self._unreadable:
            self._fail(name, failure)
        places = workers_for(len(items), self._options.jobs, _devices(self._task.settings.device))
        with _progress() as look:
            run = CohortRun(
                self._output,
                self._task,
                items,
                places,
                on_ready=self._begin,
                on_done=self._tell,
                on_look=lambda totals: self._look(totals, look),
                cancelled=cancelled,
            )
            try:
                run.run()
            finally:
                self._finished |= {one.name: one for one in self._output.all_finished()}
                self._write_tables(run.totals)
        console.say(_sentence(run.totals))
        console.say(f"tables: {shown(self._task.out / 'results.csv')}")
        return self._exit_code([self._finished[item.name] for item in items if item.name in self._finished])

    def dry_run(self, items: Sequence[CohortItem], cancelled: Cancelled) -> int:
        """Say what would be done, and why not; nothing is computed or written."""
        from medseg.cohort.study import failure_of, try_plan
        from medseg.errors import Interrupted
        from medseg.job.deidentified import unnamed_refusal
        from medseg.job.together import refused as refused_of
        from medseg.job.together import together

        jobs, task = 0, self._task
        for name, failure in self._unreadable:
            self._fail(name, failure)
        for item in items:
            if cancelled():
                raise Interrupted
            planned = try_plan(task, item, cancelled)
            if isinstance(planned, MedsegError):
                self._fail(item.name, failure_of(task.told(planned), task.uid(item), "", item.bundle))
                continue
            for refused in (unnamed_refusal(one, task.deidentify) for one in refused_of(planned)):
                series = refused.series.series_uid if refused.series else ""
                self._fail(item.name, failure_of(refused.error, task.uid(item), series, refused.bundle, refused=True))
            for job in together(planned):
                jobs += 1
                series = uid_as_told(job.stack.series.series_uid, task.deidentify)
                record = {"item": item.name, "study_uid": task.uid(item), "series_uid": series}
                folder = task.folder_of(item) / job.folder
                record |= {"bundle": job.bundle.name, "folder": folder.relative_to(task.out).as_posix()}
                if self._options.as_json:
                    console.show_json(record)
                else:
                    console.show(f"{record['folder']}: {series or task.source(item)} with {job.bundle.name}")
        seconds = [one.seconds for one in self._finished.values() if one.results]
        pace = (
            f"some {_duration(statistics.median(seconds) * len(items))} on one worker" if seconds else "not known yet"
        )
        console.say(f"{jobs} results of {len(items)} studies and volumes; time: {pace}")
        return OK if jobs else INPUT

    def _begin(self, ready: Ready) -> None:
        if self._ready is None:
            key, layout, overwrite = _fingerprint(self._task), self._options.layout, self._task.overwrite
            self._output.settle(ready.settings, ready.bundles, layout, overwrite=overwrite, key=key)
            self._ready = ready

    def _tell(self, item: CohortItem, done: Done) -> None:
        self._finished[item.name] = done.item
        if done.kept and not self._options.as_json:
            return
        for result in done.item.results:
            self._show(result)
        for failure in (*done.item.failures, *done.item.passed_over):
            self._fail(item.name, failure)

    def _show(self, result: Mapping[str, Any]) -> None:
        if self._options.as_json:
            console.show_json({name: value for name, value in result.items() if name not in ("folder", "bids")})
            return
        found = ", ".join(f"{one['label']} {one['volume_ml']:.2f} ml" for one in result["segments"] if one["voxels"])
        flags = f"; {', '.join(sorted({flag['code'] for flag in result['flags']}))}" if result["flags"] else ""
        console.show(f"{result['folder']}: {found or 'nothing found'} ({result['timings_s']['total']:.1f} s{flags})")

    def _fail(self, name: str, failure: Failure) -> None:
        if self._options.as_json:
            error = {"code": failure.code, "message": failure.message}
            record = {"study_uid": failure.study_uid or None, "series_uid": failure.series_uid or None}
            console.show_json(record | {"bundle": failure.bundle or None, "error": error, "left_out": []})
        console.say(f"{failure.kind}: {name}: {with_hint(failure.message, failure.code)}")

    def _look(self, totals: Totals, look: Callable[[Totals], None]) -> None:
        look(totals)
        if time.monotonic() - self._written > max(_TABLES_S, 20 * self._took):
            self._write_tables(totals)

    def _write_tables(self, totals: Totals) -> None:
        from medseg.cohort.bids import dataset_files
        from medseg.cohort.tables import write_tables

        begin = time.monotonic()
        items = sorted(self._finished.values(), key=lambda one: one.name)
        more = dataset_files(items) if self._task.bids else {}
        write_tables(self._task.out, items, self._unreadable, self._manifest(items, totals), more)
        self._written = time.monotonic()
        self._took = self._written - begin

    def _manifest(self, items: Sequence[Finished], totals: Totals) -> dict[str, Any]:
        settings = self._task.settings
        return {
            "made_by": {name: found for name in _LIBRARIES if (found := _version(name))},
            "python": sys.version.split()[0],
            "command": sys.argv[1:] if self._task.deidentify is None else _options_of(sys.argv[1:]),
            "deidentified": self._task.deidentify and self._task.deidentify.statement(),
            "bundles": dict(self._ready.bundles) if self._ready else {},
            "settings": {"device": settings.device, "engine": settings.engine, "precision": settings.precision}
            | {
                "exact": settings.exact,
                "overlap": settings.overlap,
                "settings_digest": self._ready and self._ready.settings,
            },
            "shard": list(self._options.shard),
            "layout": self._options.layout,
            "began_at": self._began.isoformat(timespec="seconds"),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "items": len(items),
            "items_of_this_run": totals.total,
            "done": totals.done,
            "done_before": totals.kept,
            "failed": sum(bool(one.failures) for one in items) + len(self._unreadable),
            "results": sum(len(one.results) for one in items),
            "files_passed_over": self._found.passed_over,
        }

    def _exit_code(self, items: Sequence[Finished]) -> int:
        """0 when something was done and nothing that fits failed, as for a single study."""
        failures = [failure for item in items for failure in item.failures]
        failures += [failure for _, failure in self._unreadable]
        failed = [failure for failure in failures if failure.kind == "failed"]
        done = any(item.results for item in items)
        if failed:
            return SOME_FAILED if done else failed[0].exit_code
        return OK if done else failures[0].exit_code if failures else INPUT


@contextmanager
def _progress() -> Iterator[Callable[[Totals], None]]:
    """A line that is rewritten on a terminal; elsewhere one now and then."""
    if console.messages.is_terminal:
        with Live(console=console.messages, transient=True, refresh_per_second=2) as live:
            yield lambda totals: live.update(_sentence(totals))
        return
    last = [time.monotonic()]

    def look(totals: Totals) -> None:
        if time.monotonic() - last[0] > _LINE_S:
            last[0] = time.monotonic()
            console.say(_sentence(totals))

    yield look


def _sentence(totals: Totals) -> str:
    parts = [f"{totals.done} of {totals.total} done"]
    parts += [f"{totals.kept} of them before"] if totals.kept else []
    parts += [f"{totals.failed} failed"] if totals.failed else []
    parts += [f"{totals.per_hour:.0f} studies an hour"] if totals.per_hour else []
    parts += [f"{_duration(totals.left_s)} left"] if totals.left_s else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60.0, seconds / 3600.0
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _devices(asked: str) -> list[str]:
    """The GPUs that workers may have; none for a CPU."""
    import torch

    if asked == "cpu" or not torch.cuda.is_available():
        return []
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if asked in ("auto", "cuda") else [asked]


def _options_of(command: Sequence[str]) -> list[str]:
    """The names of a command's options: their values, and its paths, may be called by whose they are."""
    return [word.partition("=")[0] for word in command if word.startswith("-")]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
