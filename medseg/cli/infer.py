"""`medseg infer`: segment a study, a cohort, a zip, a DICOMDIR or a NIfTI volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import channels, cohort, console, deidentify
from medseg.errors import AmbiguousBundle, Incomplete, Interrupted, MedsegError, UsageError, boundary
from medseg.job.exits import INPUT, OK, SOME_FAILED, as_ours, exit_code
from medseg.job.places import result_folders
from medseg.texts import shown

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.job.folder import Format
    from medseg.job.plan import Job, StudyPlan
    from medseg.job.run import Outcome
    from medseg.job.study import StudyTask, WithoutResult
    from medseg.progress import Cancelled, Report

EXAMPLES = """
[bold]Examples[/bold]

  medseg infer study/                                  every series that a bundle fits, into study-medseg/

  medseg infer ct.zip --bundle ./spleen -o results     one bundle, another output folder

  medseg infer study/ --format seg,sr,png --json       one JSON object per result on stdout

  medseg infer brain.nii.gz                            NIfTI in, NIfTI out

  medseg infer study/ --bundle liver --bundle vessels  two bundles on each series, decoded once

  medseg infer study/ --bundle ./brats --channel T1c=1.2.840.9      several series as one input

  medseg infer one.nii.gz two/ -o results              results/one/, results/two/ and tables

  medseg infer cohort/ -o results                      every study in it: results.csv, failures.csv; resumes

  medseg infer list.csv -o results --shard 3/10        a table of studies (path, id, ...), a part of it

  medseg infer cohort/ -o results --deidentify my.key  without who it is of; --new-key makes the key
"""


def infer(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="File, folder, zip, DICOMDIR or NIfTI.")
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|DIR", help="The bundle; default: the one that fits. Several: each gives a result."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Result folder; default: PATH-medseg/. Several paths: one in it each."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="LIST",
            help="Of seg, labelmap, sr, sc, ko, rtstruct, nifti, png; default seg,sr (NIfTI: nifti).",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    engine: Annotated[
        str, typer.Option(envvar="MEDSEG_ENGINE", help="auto (the fastest), torch, compile, openvino or tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, auto, bf16 or fp16, as the bundle allows.")] = "fp32",
    exact: Annotated[
        bool, typer.Option("--exact", help="Scores to the bit those of MONAI's sliding window: CPU, torch, fp32.")
    ] = False,
    overlap: Annotated[
        float | None, typer.Option(min=0.0, max=0.95, help="Overlap of windows; default: the bundle's.")
    ] = None,
    series: Annotated[list[str] | None, typer.Option(metavar="UID", help="Only this series; may be repeated.")] = None,
    channel: Annotated[list[str] | None, typer.Option(metavar="NAME=UID|PATH", help=channels.HELP)] = None,
    assume_registered: Annotated[
        bool, typer.Option("--assume-registered", help="Take channels of other frames of reference as they lie.")
    ] = False,
    assume_frame_of_reference: Annotated[
        bool, typer.Option("--assume-frame-of-reference", help="Derive one where a series has none.")
    ] = False,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Let the bundle's configuration execute code. Only your own.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other results in the result folder.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cohort: worker processes; default: one a core, or one a GPU.")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Cohort: only the I-th of N parts.")] = None,
    layout: Annotated[
        str, typer.Option(help="Cohort: folders, or bids for a BIDS derivative dataset of the results, too.")
    ] = "folders",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Cohort: say what would be done, and why not, and do nothing.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a file, slice or announced image is missing from a result.")
    ] = False,
    key: Annotated[Path | None, typer.Option("--deidentify", metavar="KEYFILE", help=deidentify.KEY)] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help=deidentify.NEW_KEY)] = False,
    copy_sources: Annotated[bool, typer.Option("--copy-sources", help=deidentify.COPIES)] = False,
    allow_burned_in: Annotated[bool, typer.Option("--allow-burned-in", help=deidentify.BURNED_IN)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per result on stdout.")] = False,
) -> None:
    """Segment images and write DICOM-SEG with a structured report.

    With no option at all, every series that an installed bundle fits is segmented.
    """
    from medseg.inference.settings import Settings
    from medseg.job.study import StudyTask

    settings = Settings(
        device=device,
        engine=engine,
        precision=precision,
        exact=exact,
        overlap=overlap,
        assume_frame_of_reference=assume_frame_of_reference,
    )
    unnamed = deidentify.read_request(key, new_key=new_key, copies=copy_sources, burned_in=allow_burned_in, out=out)
    wanted = _formats(formats)
    choices = _bundles(bundle or (), trust=trust_bundle)
    alone = _alone(choices if bundle else (), with_series=bool(series))
    given = channels.read_given(channel or (), alone)
    paths = paths or channels.only_path(given, alone)
    of_cohort = cohort.CohortOptions(jobs, cohort.read_shard(shard), dry_run, as_json, cohort.read_layout(layout))
    if (given or series) and layout != "folders":
        raise UsageError("--layout is of cohorts, --channel and --series are of one study: leave one of them out")
    if not (given or series) and cohort.is_wanted(paths, out, of_cohort):
        from medseg.cohort.study import Task

        names = tuple(tuple(str(one.path) for one in bundles) for bundles in choices)
        folder = out or result_folders(paths)[0]
        task = Task(
            names,
            settings,
            wanted,
            folder,
            bool(bundle),
            overwrite,
            strict,
            assume_registered,
            trust_bundle,
            bids=layout == "bids",
            deidentify=unnamed,
        )
        with console.interruptible() as cancelled:
            raise typer.Exit(cohort.infer_cohort(paths, task, choices, of_cohort, cancelled))
    asked = StudyTask(choices, settings, bool(bundle), overwrite, strict, assume_registered, deidentify=unnamed)
    with console.interruptible() as cancelled:
        run = _Inference(asked, cancelled, as_json=as_json, given=given)
        folders = deidentify.folders_as_told(result_folders(paths, out), out, unnamed)
        for path, folder in zip(paths, folders, strict=True):
            run.path(path, folder, wanted, frozenset(series or ()))
    raise typer.Exit(run.exit_code())


def _formats(listed: str | None) -> frozenset[Format] | None:
    from medseg.job.folder import Format

    if listed is None:
        return None
    names = {name.strip().lower() for name in listed.split(",") if name.strip()}
    unknown = names - set(Format)
    if unknown or not names:
        raise UsageError(f"--format {listed!r}: expected a list of {', '.join(Format)}")
    return frozenset(Format(name) for name in names)


def _bundles(names: Sequence[str], *, trust: bool) -> list[tuple[Bundle, ...]]:
    """Bundles to choose from, once for each result of a volume: those named one by one, else all that are installed."""
    from medseg.bundle.catalog import find_bundle, installed

    if trust and not names:
        raise UsageError("--trust-bundle goes with --bundle: name the bundle that you trust")
    found = [find_bundle(name, trust=trust) for name in names]
    called = [one.name for one in found]
    if len(set(called)) < len(called):
        raise UsageError(f"--bundle: expected bundles of different names, found {', '.join(called)}")
    return [(one,) for one in found] or [tuple(installed())]


def _alone(named: Sequence[tuple[Bundle, ...]], *, with_series: bool) -> Bundle | None:
    """The bundle that was named, where it is one. Raises UsageError where it goes with no --series."""
    if with_series and any(bundle.channels is not None for bundle, *_ in named):
        raise UsageError("--series goes with bundles of one channel: name series with --channel")
    return named[0][0] if len(named) == 1 else None


class _Inference:
    """One call of the command: what was done, refused and failed over all its paths."""

    def __init__(
        self, asked: StudyTask, cancelled: Cancelled, *, as_json: bool, given: Mapping[str, channels.GivenChannel]
    ) -> None:
        self.asked, self.cancelled, self.as_json, self.given = asked, cancelled, as_json, given
        self.done = 0
        self.refused: list[MedsegError] = []
        self.failed: list[BaseException] = []

    def path(self, path: Path, root: Path, formats: frozenset[Format] | None, only: frozenset[str]) -> None:
        """Everything in one path; whatever goes wrong with an input does not stop the others."""
        try:
            with boundary(shown(path)):
                self._path(path, root, formats, only)
        except Interrupted:
            raise
        except (MedsegError, MemoryError, OSError) as error:
            self._unreadable(deidentify.error_as_told(as_ours(shown(path), error), path, self.asked.deidentify))

    def _path(self, path: Path, root: Path, formats: frozenset[Format] | None, only: frozenset[str]) -> None:
        from medseg.job.run import Outcome
        from medseg.job.study import do_study
        from medseg.names import uid_name

        studies, lost = self._studies(path, only)
        for uid, plans in studies.items():
            told = deidentify.uid_as_told(uid, self.asked.deidentify)
            folder = root / uid_name(told) if len(studies) > 1 else root
            watch = partial(self._watch, shown(folder))
            for made in do_study(self.asked, plans, folder, formats, watch=watch, cancelled=self.cancelled):
                if isinstance(made, Outcome):
                    self._result(made)
                else:
                    self._without(made)
        if self.asked.strict and lost:
            error = Incomplete(shown(path), lost)
            self._unreadable(deidentify.error_as_told(error, path, self.asked.deidentify))

    def _studies(self, path: Path, only: frozenset[str]) -> tuple[dict[str, list[StudyPlan]], list[str]]:
        """What is to be done with each study of a path, and what was lost that no series answers for.

        A NIfTI volume is a study without UID.
        """
        from medseg.dicom import left_out
        from medseg.dicom.nifti import is_nifti
        from medseg.dicom.sources import find_instances
        from medseg.errors import EmptyInput
        from medseg.job.study import lost_of, plan_study, plan_volume

        if is_nifti(path):
            return {"": plan_volume(self.asked, path, channels.files_of(self.given))}, []
        with console.progress(deidentify.input_as_told(path, self.asked.deidentify)) as report:
            found = find_instances(path, on_progress=report, cancelled=self.cancelled)
        console.tell_skipped(found.skipped, by_name=self.asked.deidentify is None)
        if not found.instances:
            raise EmptyInput(path, found.looked_at)
        series = left_out.series_of(found)
        missing = only - {one.series_uid for one in series}
        if missing:
            raise UsageError(f"{shown(path)}: no series {', '.join(sorted(missing))}")
        assume = self.asked.settings.assume_frame_of_reference
        named = channels.named_volumes(self.given, series, assume_frame_of_reference=assume)
        studies = {
            study_uid: plan_study(self.asked, [one for one in series if one.study_uid == study_uid], named, only)
            for study_uid in sorted({one.study_uid for one in series})
        }
        return studies, lost_of(series, [one for plans in studies.values() for one in plans])

    @contextmanager
    def _watch(self, folder: str, job: Job) -> Iterator[Report]:
        if self.asked.deidentify is None:
            channels.tell_channels(job)
        uid = deidentify.uid_as_told(job.stack.series.series_uid, self.asked.deidentify)
        with console.progress(uid or folder) as report:
            yield report

    def _without(self, made: WithoutResult) -> None:
        (self.failed if made.failed else self.refused).append(made.refused.error)
        if self.as_json:
            console.show_json(made.refused.record())
        console.say(f"{'failed' if made.failed else 'refused'}: {console.sentence(made.refused.error)}")

    def _unreadable(self, error: MedsegError) -> None:
        from medseg.results.record import refusal_record

        self.failed.append(error)
        if self.as_json:
            console.show_json(refusal_record(None, None, None, error))
        console.fail(error)

    def _result(self, outcome: Outcome) -> None:
        self.done += 1
        if self.as_json:
            console.show_json(outcome.record)
            return
        record = outcome.record
        found = ", ".join(f"{segment['label']} {segment['volume_ml']:.2f} ml" for segment in record["segments"])
        state = "up to date" if outcome.up_to_date else f"{record['timings_s']['total']:.1f} s"
        console.show(f"{shown(outcome.folder)}: {found or 'nothing found'} ({state})")
        for flag in record["flags"]:
            console.warn(f"{flag['code']}: {flag['message']}")
        for warning in record["warnings"]:
            console.warn(warning)

    def exit_code(self) -> int:
        """0 when something was done and nothing that fits failed; else the table of `exits`."""
        if self.failed:
            return SOME_FAILED if self.done else exit_code(self.failed[0])
        if any(isinstance(error, AmbiguousBundle) for error in self.refused):
            return exit_code(next(error for error in self.refused if isinstance(error, AmbiguousBundle)))
        return OK if self.done else INPUT
