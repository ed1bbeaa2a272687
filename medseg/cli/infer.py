"""`medseg infer`: segment a study, a cohort, a zip, a DICOMDIR or a NIfTI volume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.cli.exits import INPUT, OK, SOME_FAILED, exit_code
from medseg.errors import AmbiguousBundle, Interrupted, MedsegError, UsageError

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.inference.segment import Settings
    from medseg.job import Format, Job, Outcome, Plan, Refused
    from medseg.progress import Cancelled

EXAMPLES = """
[bold]Examples[/bold]

  medseg infer study/                                  every series that a bundle fits, into study-medseg/

  medseg infer ct.zip --bundle ./spleen -o results     one bundle, another output folder

  medseg infer study/ --format seg,sr,png --json       one JSON object per result on stdout

  medseg infer brain.nii.gz                            NIfTI in, NIfTI out
"""


def infer(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="File, folder, zip, DICOMDIR or NIfTI.")],
    bundle: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="The bundle; default: the one that fits.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Result folder; default: PATH-medseg/.")] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="LIST", help="Of seg, sr, nifti, png; default seg,sr (nifti for NIfTI)."),
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
    assume_frame_of_reference: Annotated[
        bool, typer.Option("--assume-frame-of-reference", help="Derive one where a series has none.")
    ] = False,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Let the bundle's configuration execute code. Only your own.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other results in the result folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per result on stdout.")] = False,
) -> None:
    """Segment images and write DICOM-SEG with a structured report.

    With no option at all, every series that an installed bundle fits is segmented.
    """
    from medseg.inference.segment import Settings

    settings = Settings(
        device=device,
        engine=engine,
        precision=precision,
        exact=exact,
        overlap=overlap,
        assume_frame_of_reference=assume_frame_of_reference,
    )
    wanted = _formats(formats)
    bundles = _bundles(bundle, trust=trust_bundle)
    with console.interruptible() as cancelled:
        run = _Run(bundles, bundle is not None, settings, overwrite, as_json, cancelled)
        for path in paths:
            run.path(path, out, wanted, frozenset(series or ()), several=len(paths) > 1)
    raise typer.Exit(run.exit_code())


def _formats(listed: str | None) -> frozenset[Format] | None:
    from medseg.job import Format

    if listed is None:
        return None
    names = {name.strip().lower() for name in listed.split(",") if name.strip()}
    unknown = names - set(Format)
    if unknown or not names:
        raise UsageError(f"--format {listed!r}: expected a list of {', '.join(Format)}")
    return frozenset(Format(name) for name in names)


def _bundles(name: str | None, *, trust: bool) -> tuple[Bundle, ...]:
    from medseg.bundle.catalog import find_bundle, installed

    if name is not None:
        return (find_bundle(name, trust=trust),)
    if trust:
        raise UsageError("--trust-bundle goes with --bundle: name the bundle that you trust")
    return tuple(installed())


class _Run:
    """One call of the command: what was done, refused and failed over all its paths."""

    def __init__(
        self,
        bundles: tuple[Bundle, ...],
        explicit: bool,
        settings: Settings,
        overwrite: bool,
        as_json: bool,
        cancelled: Cancelled,
    ) -> None:
        self.bundles, self.explicit, self.settings = bundles, explicit, settings
        self.overwrite, self.as_json, self.cancelled = overwrite, as_json, cancelled
        self.done = 0
        self.refused: list[MedsegError] = []
        self.failed: list[BaseException] = []

    def path(
        self, path: Path, out: Path | None, formats: frozenset[Format] | None, only: frozenset[str], *, several: bool
    ) -> None:
        """Everything in one path; an input that cannot be read does not stop the others."""
        from medseg.job import Format, default_out

        try:
            plans = list(self._plans(path, only))
        except Interrupted:
            raise
        except MedsegError as error:
            self._unreadable(error)
            return
        root = out or default_out(path)
        cohort = len(plans) > 1 or (several and out is not None)
        for study_uid, nifti, plan in plans:
            wanted = formats or frozenset({Format.NIFTI} if nifti else {Format.SEG, Format.SR})
            for refused in plan.refused:
                self._refuse(refused)
            for job in plan.jobs:
                self._job(job, root / study_uid if cohort and study_uid else root, wanted)

    def _plans(self, path: Path, only: frozenset[str]) -> Iterator[tuple[str, bool, Plan]]:
        from medseg.dicom.nifti import is_nifti
        from medseg.dicom.sources import find_instances
        from medseg.errors import EmptyInput
        from medseg.job import plan, plan_nifti

        if is_nifti(path):
            yield "", True, plan_nifti(path, self.bundles, explicit=self.explicit)
            return
        with console.progress(str(path)) as report:
            found = find_instances(path, on_progress=report, cancelled=self.cancelled)
        console.tell_skipped(found.skipped)
        if not found.instances:
            raise EmptyInput(path, found.looked_at)
        series = [one for one in found.series() if not only or one.series_uid in only]
        missing = only - {one.series_uid for one in series}
        if missing:
            raise UsageError(f"{path}: no series {', '.join(sorted(missing))}")
        for study_uid in sorted({one.study_uid for one in series}):
            of_study = [one for one in series if one.study_uid == study_uid]
            yield (
                study_uid,
                False,
                plan(
                    of_study,
                    self.bundles,
                    explicit=self.explicit,
                    assume_frame_of_reference=self.settings.assume_frame_of_reference,
                ),
            )

    def _job(self, job: Job, out: Path, formats: frozenset[Format]) -> None:
        from medseg.job import Refused, run

        uid = job.stack.series.series_uid
        try:
            with console.progress(uid or str(out)) as report:
                outcome = run(
                    job,
                    out,
                    formats,
                    settings=self.settings,
                    overwrite=self.overwrite,
                    on_progress=report,
                    cancelled=self.cancelled,
                )
        except Interrupted:
            raise
        except MedsegError as error:
            self.failed.append(error)
            self._tell(Refused(job.stack.series, job.bundle.name, error), "failed")
        else:
            self.done += 1
            self._result(outcome)

    def _refuse(self, refused: Refused) -> None:
        self.refused.append(refused.error)
        self._tell(refused, "refused")

    def _tell(self, refused: Refused, how: str) -> None:
        if self.as_json:
            console.show_json(refused.record())
        console.say(f"{how}: {console.sentence(refused.error)}")

    def _unreadable(self, error: MedsegError) -> None:
        self.failed.append(error)
        if self.as_json:
            record = {"study_uid": None, "series_uid": None, "bundle": None}
            console.show_json(record | {"error": {"code": error.code, "message": str(error)}})
        console.fail(error)

    def _result(self, outcome: Outcome) -> None:
        if self.as_json:
            console.show_json(outcome.record)
            return
        record = outcome.record
        found = ", ".join(f"{segment['label']} {segment['volume_ml']:.2f} ml" for segment in record["segments"])
        state = "up to date" if outcome.up_to_date else f"{record['timings_s']['total']:.1f} s"
        console.show(f"{outcome.folder}: {found or 'nothing found'} ({state})")
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
