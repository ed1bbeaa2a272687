"""`medseg bundles`: what is installed, what a bundle does, and whether its files are whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from medseg.cli import console

app = typer.Typer(no_args_is_help=True, help="List, inspect and verify bundles.")

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Named = Annotated[str, typer.Argument(metavar="NAME|DIR", help="An installed bundle, or a bundle's folder.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every installed bundle, a line each."""
    from medseg.bundle.catalog import installed
    from medseg.bundle.describe import summary

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
    from medseg.bundle.describe import details

    record = details(find_bundle(name))
    if as_json:
        console.show_json(record)
        return
    console.show(f"{record['name']} {record['version']}: {record['description']}")
    for key in ("licence", "research_only", "digest", "network", "inputs", "precisions", "expects", "postprocess"):
        console.show(f"  {key.replace('_', ' ')}: {_words(record[key])}")
    for step in record["steps"]:
        console.show(f"  step: {step}")
    console.show(f"  window: {record['window']}")
    console.show(f"  finish: {record['finish']}")
    console.show("  streams: yes" if record["streamable"] else f"  streams: no, {'; '.join(record['barriers'])}")
    for segment in record["segments"]:
        console.show(f"  segment {segment['number']}: {segment['label']} ({segment['type']})")


@app.command("verify", epilog="[bold]Example[/bold]  medseg bundles verify ./my_bundle")
def verify(name: Named, as_json: AsJson = False) -> None:
    """Load the configuration and the weights strictly, and run the network once on zeros."""
    from medseg.bundle.catalog import find_bundle
    from medseg.bundle.describe import verify as verified

    record = verified(find_bundle(name))
    if as_json:
        console.show_json(record)
    else:
        console.show(
            f"{record['bundle']} {record['version']}: ok, {record['parameters']} parameters, {record['digest']}"
        )


def _words(value: Any) -> str:
    """Plain words for a value of a record; what is empty is left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items() if item not in (None, [], (), 0.0))
    if isinstance(value, list | tuple):
        return " ".join(_words(item) for item in value)
    return str(value)
