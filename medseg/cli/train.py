"""`medseg train` and `medseg evaluate`: reproduce a bundle's weights, and its scores."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.training.evaluate import EvaluationProgress
    from medseg.training.fit import TrainingProgress

TRAIN_EXAMPLES = """
[bold]Examples[/bold]

  medseg train hippocampus_t1_unet3d --data msd_hippocampus/ -o retrained/hippocampus_t1_unet3d

  medseg train ./my_bundle --data cases/ -o my_bundle_trained --resume      go on after Ctrl-C

The data folder holds images/ and labels/, NIfTI volumes of the same names; for a bundle of several channels
images/CASE_T1.nii.gz, images/CASE_FLAIR.nii.gz and so on, by its channels' names.
"""

EVALUATE_EXAMPLES = """
[bold]Examples[/bold]

  medseg evaluate hippocampus_t1_unet3d --data msd_hippocampus/ > scores.csv

  medseg evaluate ./my_bundle --data other_cases/ --all

  medseg evaluate ./sarcoma --data studies/ --all --structure "Sarcoma=GTV*"     DICOM with RTSTRUCT

The data folder holds images/ and labels/, NIfTI volumes of the same names, or a folder for each case with the DICOM
images of one study and a SEG or RTSTRUCT of them, whose structures are named as the bundle's segments.
"""

Named = Annotated[str, typer.Argument(metavar="BUNDLE", help="An installed bundle, or a bundle's folder.")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder with images/ and labels/.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]

_TELL_EVERY = 50


def train(
    name: Named,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trained bundle's folder; default: BUNDLE-trained here.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights to go on from, where the bundle's plan asks for some."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the bundle's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the bundle's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights in the output folder.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a bundle's network as its configs/train.json says, on the cases that are not set aside."""
    import torch

    from medseg.bundle.catalog import find_bundle
    from medseg.bundle.network import build_network
    from medseg.inference.engines.device import choose_device
    from medseg.training import train as training
    from medseg.training.start import started

    bundle = find_bundle(name, trained=False)
    target = out or Path(f"{bundle.name}-trained")
    plan = training.plan_of(bundle, seed=seed, steps=steps)
    torch.manual_seed(plan.seed)
    network = started(build_network(bundle), bundle, plan.start, start)
    with console.interruptible() as cancelled:
        record = training.train(
            bundle,
            data,
            network,
            plan,
            out=target,
            resume=resume,
            overwrite=overwrite,
            device=choose_device(device),
            on_step=_tell,
            cancelled=cancelled,
        )
    if as_json:
        console.show_json(asdict(record))
    else:
        console.show(f"{target}: {record.steps} steps in {record.wall_s / 60:.1f} min, loss {record.final_loss:.4f}")
        console.say(f"next: medseg evaluate {target} --data {data}")


def _tell(progress: TrainingProgress) -> None:
    if progress.step % _TELL_EVERY and progress.step != progress.steps:
        return
    left_min = progress.wall_s / progress.step * (progress.steps - progress.step) / 60
    console.say(f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  {left_min:.1f} min left")


def evaluate(
    name: Named,
    data: Data,
    everything: Annotated[
        bool, typer.Option("--all", help="All cases, not only those that training set aside.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option(metavar="CHANNEL", help="An optional channel that is taken to be missing.")
    ] = None,
    structures: Annotated[
        list[str] | None,
        typer.Option("--structure", metavar="SEGMENT=NAME", help="What DICOM references call a segment; * allowed."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, auto, bf16 or fp16, as the bundle allows.")] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Score a bundle on labelled cases: Dice, 95 % Hausdorff (mm), volume error, lesions; CSV on stdout."""
    from medseg.bundle.catalog import find_bundle
    from medseg.inference.settings import Settings
    from medseg.training.evaluate import evaluate as score
    from medseg.training.evaluate import rows, write_csv

    bundle = find_bundle(name)
    with console.interruptible() as cancelled:
        evaluation = score(
            bundle,
            data,
            everything=everything,
            without=without or (),
            structures=_pairs(structures or ()),
            settings=Settings(device=device, precision=precision),
            on_case=_tell_case,
            cancelled=cancelled,
        )
    if as_json:
        for row in rows(evaluation):
            console.show_json(row)
    else:
        write_csv(evaluation, sys.stdout)


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    parts = [text.partition("=") for text in texts]
    for label, equals, name in parts:
        if not (label and equals and name):
            raise UsageError(f"--structure {label}{equals}{name}: expected SEGMENT=NAME")
    return {label: name for label, _, name in parts}


def _tell_case(progress: EvaluationProgress) -> None:
    dice = "  ".join(f"{name} {score.dice:.3f}" for name, score in progress.scores.items())
    console.say(f"{progress.done}/{progress.total}  {progress.case}  Dice: {dice}")
