"""`medseg bench`: how fast things are on this machine. `benchmarks/` compares medseg with others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.progress import check

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.progress import Cancelled

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")

_WHOLE_AXIS = 96  # voxels, where a window takes the whole of an axis

EXAMPLES = """
[bold]Example[/bold]  medseg bench engines hippocampus_t1_unet3d

What is found is kept: --engine auto takes the fastest from then on, without racing first.
"""


@app.command("engines", epilog=EXAMPLES)
def engines(
    bundle: Annotated[
        str | None, typer.Argument(metavar="NAME|DIR", help="The bundle; default: each that is installed.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per engine on stdout.")] = False,
) -> None:
    """Race all engines over a window of each bundle, in each precision that it allows, and keep who won."""
    from medseg.bundle.catalog import find_bundle, installed

    with console.interruptible() as cancelled:
        for one in [find_bundle(bundle)] if bundle else installed():
            if not as_json:
                console.show(f"{one.name}, seconds a window")
            for row in _rows(one, device, cancelled):
                console.show_json(row) if as_json else console.show(_line(row))


def _rows(bundle: Bundle, device_name: str, cancelled: Cancelled) -> Iterator[dict[str, Any]]:
    import torch

    from medseg.inference import memory
    from medseg.inference.engines.backends import BACKENDS
    from medseg.inference.engines.device import CPU, choose_device, runs_in, steady_batch
    from medseg.inference.engines.engine import Engine
    from medseg.inference.segment import NETWORKS

    device = choose_device(device_name)
    window = bundle.recipe.window
    roi = [size if size > 0 else _WHOLE_AXIS for size in window.roi]
    network = NETWORKS.get(bundle, device)
    batch = steady_batch(window.batch) if device == CPU else memory.gpu_batch(network, bundle, roi, device)
    if len(roi) == 2:
        roi.insert(window.slice_axis, 1)
    noise = torch.rand(batch, bundle.in_channels, *roi, generator=torch.Generator().manual_seed(0))
    plain_s: float | None = None
    for precision in bundle.precisions:
        if not runs_in(precision, device):
            console.say(f"{bundle.name}: {device} does not compute in {precision}")
            continue
        engine = Engine(network, bundle, device, precision, batch, waiting=lambda: check(cancelled))
        console.say(f"{bundle.name} in {precision}: racing, which may take minutes")
        verdict = engine.race(noise)
        plain_s = plain_s or verdict.entries[0].window_s
        missing = {name: one.missing(device, precision) for name, one in BACKENDS.items()}
        facts = {"bundle": bundle.name, "device": str(device), "precision": precision, "window": list(window.roi)}
        for entry in verdict.entries:
            record = asdict(entry)
            kept = {key: record[key] for key in ("engine", "window_s", "prepare_s", "difference", "agreement", "why")}
            ratio = plain_s / entry.window_s if plain_s and entry.window_s else None
            yield {**facts, **kept, "times_torch_fp32": ratio, "chosen": entry.engine == verdict.chosen}
        for name, why in missing.items():
            if why is not None:
                nothing = dict.fromkeys(("window_s", "prepare_s", "difference", "agreement"))
                yield {**facts, "engine": name, **nothing, "why": why, "times_torch_fp32": None, "chosen": False}


def _line(row: dict[str, Any]) -> str:
    name = f"{'*' if row['chosen'] else ' '} {row['precision']}  {row['engine']:<20}"
    if row["window_s"] is None:
        return f"{name} {row['why']}"
    return (
        f"{name} {row['window_s']:9.4f} s  {row['times_torch_fp32']:5.2f} x torch fp32  "
        f"difference {row['difference']:.0e}, same labels {row['agreement']:.3%}"
    )
