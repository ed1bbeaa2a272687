"""`medseg infer`: segment a study, a cohort, a zip, a DICOMDIR or a NIfTI volume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.exits import OK, SOME_FAILED, exit_code
from medseg.errors import DoesNotFit, GeometryRefused, Interrupted, MedsegError, UsageError

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.dicom.series import Series
    from medseg.job import Format, Plan

EXAMPLES = """
[bold]Examples[/bold]

  medseg infer study/                                  every series that a bundle fits, into study-medseg/

  medseg infer ct.zip --bundle ./spleen -o results     one bundle, another output folder

  medseg infer study/ --format seg,sr,png --json       one JSON object per result on stdout

  medseg infer brain.nii.gz                            NIfTI in, NIfTI out
"""


def infer(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="File, folder, zip, DICOMDIR or NIfTI.")],
    bundle: Annotated[str | None, typer.Option(metavar="NAME|DIR", help="The bundle; default: the one that fits.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Result folder; default: PATH-medseg/.")] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="LIST", help="Of seg, sr, nifti, png; default seg,sr (nifti for NIfTI)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, auto, bf16 or fp16, as the bundle allows.")] = "fp32",
    overlap: Annotated[float | None, typer.Option(min=0.0, max=0.95, help="Overlap of windows; default: the bundle's.")] = None,
    series: Annotated[list[str] | None, typer.Option(metavar="UID", help="Only this series; may be repeated.")] = None,
    assume_frame_of_reference: Annotated[
        bool, typer.Option(help="Derive a frame of reference where a series has none.")
    ] = False,
    trust_bundle: Annotated[bool, typer.Option(help="Let the bundle's configuration execute code. Only your own.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace other results in the result folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per result on stdout.")] = False,
) -> None:
    """Segment images and write DICOM-SEG with a structured report.

    With no option at all, every series that an installed bundle fits is segmented.
    """
    from medseg.inference.segment import Settings

    settings = Settings(
        device=device, precision=precision, overlap=overlap, assume_frame_of_reference=assume_frame_of_reference
    )
    with console.interruptible() as cancelled:
        run = _Run(_bundles(bundle, trust=trust_bundle), bundle is not None, settings, overwrite, as_json, cancelled)
        for path in paths:
            run.path(path, out, formats, frozenset(series or ()))
    raise typer.Exit(run.exit_code())
