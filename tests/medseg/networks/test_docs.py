"""The table of docs/networks.md is counted."""

from __future__ import annotations

from pathlib import Path

from medseg.networks import MeshNet
from tests.medseg.networks.families import FAMILIES, Family, count

PAGE = Path(__file__).resolve().parents[3] / "docs" / "networks.md"


def test_parameters_are_as_documented() -> None:
    rows = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    table = {row[1].split("`")[1]: [cell.split()[0] for cell in row[2:5]] for row in rows}
    assert table == {family.network.__name__: counted(family) for family in FAMILIES}


def counted(family: Family) -> list[str]:
    name = family.network.__name__
    channels = {"UNet2015": (1, 2), "MeshNet": (1, 3)}.get(name, (3, 21))
    dims = 3 if family.network is MeshNet else 2
    counts = (
        count(lambda: family.network(dims, *channels)),
        count(lambda: family.make_small(2)),
        count(lambda: family.make_small(3)),
    )
    return [f"{n:,}" for n in counts]
