"""`medseg inspect`: what is in there, what its geometry is worth, and which bundles fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.channels import choice_record, show_choices
from medseg.cli.hints import with_hint
from medseg.errors import EmptyInput
from medseg.job.exits import INPUT, OK

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.dicom.geometry import Refusal
    from medseg.dicom.series import Series, Stack

EXAMPLES = """
[bold]Examples[/bold]

  medseg inspect study/

  medseg inspect study.zip --json

  medseg inspect study/ --bundle ./brats               which series is which channel, and why the others are not
"""


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File, folder, zip, DICOMDIR or NIfTI.")],
    bundle: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="Look at this bundle alone; default: at every one there is.")
    ] = None,
    assume_frame_of_reference: Annotated[
        bool, typer.Option(help="Derive a frame of reference where a series has none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per series on stdout.")] = False,
) -> None:
    """Show each series: accepted, split or refused, with the reason, and the bundles that fit.

    For a bundle of several channels: which series of the study is which channel, with reasons.
    """
    from medseg.bundle.catalog import find_bundle, installed
    from medseg.dicom.geometry import classify
    from medseg.dicom.nifti import is_nifti, read_nifti
    from medseg.dicom.sources import find_instances

    bundles = tuple(installed()) if bundle is None else (find_bundle(bundle),)
    accepted = 0
    if is_nifti(path):
        stack = read_nifti(path)
        _present(_series(stack.series, "accepted", (stack,), (), bundles), as_json)
        accepted = 1
    else:
        with console.progress(str(path)) as report:
            found = find_instances(path, on_progress=report)
        if not found.instances:
            raise EmptyInput(path, found.looked_at)
        if bundle is not None and bundles[0].channels is not None:
            chosen = _channels(found.series(), bundles[0], assume_frame_of_reference, as_json)
            console.tell_skipped(found.skipped)
            raise typer.Exit(OK if chosen else INPUT)
        for series in found.series():
            verdict = classify(series, assume_frame_of_reference=assume_frame_of_reference)
            accepted += bool(verdict.stacks)
            _present(_series(series, str(verdict.verdict), verdict.stacks, verdict.refusals, bundles), as_json)
        console.tell_skipped(found.skipped)
    raise typer.Exit(OK if accepted else INPUT)


def _channels(series: list[Series], bundle: Bundle, assume_frame_of_reference: bool, as_json: bool) -> bool:
    """Show the channels of each study; whether a study has them all, and they can be looked at together."""
    from medseg.errors import MedsegError
    from medseg.job.channels import explain, stack_of_channels, study_of

    complete = False
    for uid in sorted({one.study_uid for one in series}):
        of_study = [one for one in series if one.study_uid == uid]
        study = study_of(of_study, assume_frame_of_reference=assume_frame_of_reference)
        choices = explain(study, bundle)
        error: MedsegError | None = None
        try:
            stack_of_channels(study, bundle)
        except MedsegError as refusal:
            error = refusal
        if as_json:
            refused = None if error is None else {"code": error.code, "message": str(error)}
            console.show_json(choice_record(study.uid, bundle, choices) | {"error": refused})
        else:
            console.show(f"study {uid}")
            show_choices(bundle, choices)
            console.show(f"  refused: {console.sentence(error)}" if error else "  all channels are there")
        complete = complete or error is None
    return complete


def _series(
    series: Series, verdict: str, stacks: tuple[Stack, ...], refusals: tuple[Refusal, ...], bundles: tuple[Bundle, ...]
) -> dict[str, Any]:
    return {
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "modality": series.modality,
        "number": series.number,
        "instances": len(series.instances),
        "verdict": verdict,
        "stacks": [_stack(stack, bundles) for stack in stacks],
        "refusals": [{"reason": str(refusal.reason), "detail": refusal.detail} for refusal in refusals],
    }


def _stack(stack: Stack, bundles: tuple[Bundle, ...]) -> dict[str, Any]:
    from medseg.bundle.catalog import fits, not_known
    from medseg.dicom.planes import plane

    misfits = {bundle.name: fits(stack, bundle) for bundle in bundles}
    return {
        "slices": stack.shape[0],
        "rows": stack.shape[1],
        "columns": stack.shape[2],
        "spacing_mm": [round(value, 4) for value in stack.spacing_mm],
        "plane": plane((*stack.affine[:3, 2] / stack.spacing_mm[2], *stack.affine[:3, 1] / stack.spacing_mm[1])),
        "tilt_deg": round(stack.tilt_deg, 2),
        "phase": stack.phase,
        "findings": [{"code": finding.code, "detail": finding.detail} for finding in stack.findings],
        "fits": [name for name, reasons in misfits.items() if not reasons],
        "does_not_fit": {name: list(reasons) for name, reasons in misfits.items() if reasons},
        "not_known": {
            bundle.name: list(unknown)
            for bundle in bundles
            if not misfits[bundle.name] and (unknown := not_known(stack, bundle))
        },
        "pixels": {
            bundle.name: list(found)
            for bundle in bundles
            if not misfits[bundle.name] and (found := _pixels(stack, bundle))
        },
        "does_not_stream": {
            bundle.name: list(bundle.recipe.barriers())
            for bundle in bundles
            if bundle.recipe.barriers() and not misfits[bundle.name]
        },
    }


def _pixels(stack: Stack, bundle: Bundle) -> tuple[str, ...]:
    """What some slices show that the bundle was not made for, where it says what they must."""
    from medseg.errors import MedsegError
    from medseg.inference.pieces.looked import look_at_pixels

    check = bundle.expects.pixels
    try:
        found = () if check is None else look_at_pixels(stack, check)
    except MedsegError as error:
        return (str(error),)
    how = "refused" if check is not None and check.refuse else "flagged"
    return tuple(f"{how}: {one}" for one in found)


def _present(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.show_json(record)
        return
    number = "-" if record["number"] is None else record["number"]
    console.show(
        f"series {record['series_uid']}  {record['modality'] or '?'}  number {number}  "
        f"{record['instances']} instances: {record['verdict']}"
    )
    for stack in record["stacks"]:
        k, j, i = stack["spacing_mm"]
        phase = f"  {stack['phase']}" if stack["phase"] else ""
        console.show(
            f"  volume {stack['slices']} x {stack['rows']} x {stack['columns']}, {k:g} x {j:g} x {i:g} mm"
            f"{', ' if stack['plane'] else ''}{stack['plane']}{phase}: "
            f"fits {', '.join(stack['fits']) or 'no bundle'}"
        )
        for finding in stack["findings"]:
            console.show(f"    {finding['code']}: {finding['detail']}")
        for name, reasons in stack["does_not_fit"].items():
            console.show(f"    not {name}: {'; '.join(reasons)}")
        for name, unknown in stack["not_known"].items():
            console.show(f"    {name}: {', '.join(unknown)}")
        for name, found in stack["pixels"].items():
            console.show(f"    {name} by its pixels {'; '.join(found)}")
        for name, reasons in stack["does_not_stream"].items():
            console.show(f"    {name} does not stream: {'; '.join(reasons)}")
    for refusal in record["refusals"]:
        console.show(f"  refused, {refusal['reason']}: {with_hint(refusal['detail'], refusal['reason'])}")
