"""`medseg bundles`: what is installed, what a bundle does, whether its files are whole; and new ones to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.bundle.describe import details, summary
from medseg.bundle.describe import verify as verified
from medseg.cli import console
from medseg.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="List, inspect, verify and begin bundles.")

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Named = Annotated[str, typer.Argument(metavar="NAME|DIR", help="An installed bundle, or a bundle's folder.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every installed bundle, a line each."""
    from medseg.bundle.catalog import installed

    for bundle in installed():
        record = summary(bundle)
        if as_json:
            console.show_json(record)
        else:
            marks = [word for word in ("default", "research_only") if record[word]]
            console.show(f"{bundle.name} {bundle.version}  {', '.join(marks)}  {bundle.description}")


@app.command("inspect", epilog="[bold]Example[/bold]  medseg bundles inspect hippocampus_t1_unet3d")
def inspect(name: Named, as_json: AsJson = False) -> None:
    """What a bundle expects, does and finds; whether it streams, and why not."""
    from medseg.bundle.catalog import find_bundle

    record = details(find_bundle(name))
    if as_json:
        console.show_json(record)
        return
    console.show(f"{record['name']} {record['version']}: {record['description']}")
    shown = (
        "licence",
        "research_only",
        "digest",
        "weights",
        "network",
        "inputs",
        "precisions",
        "expects",
        "postprocess",
        "nnunet",
    )
    for key in (key for key in shown if record[key] is not None):
        console.show(f"  {key.replace('_', ' ')}: {_words(record[key])}")
    for step in record["steps"]:
        console.show(f"  step: {step}")
    console.show(f"  window: {record['window']}")
    console.show(f"  finish: {record['finish']}")
    console.show("  streams: yes" if record["streamable"] else f"  streams: no, {'; '.join(record['barriers'])}")
    for line in record["region"]["explained"] if record["region"] else ():
        console.show(f"  region: {line}")
    for channel in record["channels"]:
        console.show(f"  channel {channel['name']}: {channel['expected']}")
    for segment in record["segments"]:
        console.show(f"  segment {segment['number']}: {segment['label']} ({segment['type']})")
    _doubts(record)


@app.command("verify", epilog="[bold]Example[/bold]  medseg bundles verify ./my_bundle")
def verify(name: Named, as_json: AsJson = False) -> None:
    """Load the configuration and the weights strictly, and run the network once on zeros."""
    from medseg.bundle.catalog import find_bundle

    record = verified(find_bundle(name))
    if as_json:
        console.show_json(record)
    else:
        console.show(
            f"{record['bundle']} {record['version']}: ok, {record['parameters']} parameters, {record['digest']}"
        )
        _doubts(record)


NEW_EXAMPLES = """
[bold]Examples[/bold]

  medseg bundles new liver_ct_pspnet --network pspnet --dims 3 --segment Liver --segment "Liver tumour"

  medseg bundles new brain_meshnet --network meshnet --weights model5_gw_ae.safetensors --architecture model5_gw_ae.json

  medseg bundles new liver_ct --nnunet Dataset001_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres

Edit the files; then: medseg train DIR --data CASES -o DIR-trained
"""


@app.command("new", epilog=NEW_EXAMPLES)
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle's folder; its last part is its name.")],
    network: Annotated[
        str | None, typer.Option(help="fcn, segnet, unet2015, pspnet, deeplabv3, deeplabv3plus or meshnet.")
    ] = None,
    dims: Annotated[int, typer.Option(help="2: slice by slice; 3: by windows.")] = 3,
    segments: Annotated[
        list[str] | None, typer.Option("--segment", help="What is to be found; once for each. Default: Structure.")
    ] = None,
    modality: Annotated[str, typer.Option(help="CT or MR: how values are scaled.")] = "MR",
    weights: Annotated[Path | None, typer.Option(help="A MeshNet's, trained by brainchop; safetensors.")] = None,
    architecture: Annotated[Path | None, typer.Option(help="Its description; JSON.")] = None,
    nnunet: Annotated[
        list[Path] | None,
        typer.Option(
            "--nnunet", metavar="FOLDER", help="A trained nnU-Net v2 model; several are merged into one result."
        ),
    ] = None,
) -> None:
    """Write a bundle to begin with, ready to be trained; or one of a MeshNet, or of nnU-Net, with its weights."""
    from medseg.bundle.template import meshnet_bundle, new_bundle

    if nnunet:
        from medseg.bundle.nnunet.write import write_bundle

        if network is not None or weights is not None or architecture is not None or segments:
            raise UsageError("--nnunet brings network, weights and segments with it: leave out the other options")
        write_bundle(folder, nnunet)
        console.show(f"{folder}: check configs/metadata.json, then: medseg bundles verify {folder}")
        return
    if network is None:
        raise UsageError("name a --network, or the folder of a model with --nnunet")
    if weights is None and architecture is None:
        new_bundle(folder, network, dims, segments=segments or ["Structure"], modality=modality.upper())
        console.show(f"{folder}: edit it, then: medseg train {folder} --data DIR -o {folder}-trained")
        return
    if weights is None or architecture is None or network.lower() != "meshnet":
        raise UsageError("--weights and --architecture go together, with --network meshnet")
    meshnet_bundle(folder, weights, architecture)
    console.show(f"{folder}: ready, try: medseg bundles verify {folder}")


def _doubts(record: Mapping[str, Any]) -> None:
    """What is strange about codes and colours, as warnings."""
    for doubt in record["doubts"]:
        console.warn(doubt)


def _words(value: Any) -> str:
    """Plain words for a value of a record; what is empty is left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items() if item not in (None, [], (), 0.0))
    if isinstance(value, list | tuple):
        return " ".join(_words(item) for item in value)
    return str(value)
