"""What there is to say of a bundle's region: as plain data, and in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.region import ByBundle, LookMode, NotFound, Region


def region_details(bundle: Bundle) -> dict[str, Any] | None:
    """How a bundle finds where to look; None where it looks everywhere."""
    region, first = bundle.region, bundle.first_pass
    if region is None:
        return None
    by = region.first_pass
    return {
        "first_pass": by.words if first is None else f"bundle {first.name} {first.version}",
        "first_pass_digest": None if first is None else first.digest,
        "first_pass_labels": list(by.labels) if isinstance(by, ByBundle) else [],
        "spacing_mm": None if isinstance(by, ByBundle) else by.spacing_mm,
        "mode": str(region.mode),
        "margin_mm": list(region.margin_mm),
        "size_mm": None if region.size_mm is None else list(region.size_mm),
        "min_volume_ml": region.min_volume_ml,
        "most": region.most,
        "statistics": str(region.statistics),
        "not_found": str(region.not_found),
        "views": [
            {
                "label": view.label,
                "mirror": [str(axis) for axis in view.mirror],
                "labels": {str(own): number for own, number in view.labels.items()},
            }
            for view in region.views
        ],
        "explained": list(_sentences(region, bundle)),
    }


def _sentences(region: Region, bundle: Bundle) -> Iterator[str]:
    by, first = region.first_pass, bundle.first_pass
    if isinstance(by, ByBundle):
        what = by.words if first is None else f"bundle {first.name} {first.version}"
        of = f", labels {', '.join(map(str, by.labels))}" if by.labels else ""
    else:
        what, of = by.words, f", on a grid of {by.spacing_mm:g} mm"
    yield f"a first pass ({what}{of}) says where the network looks; elsewhere is background"
    pieces = "each piece that it finds"
    if region.min_volume_ml:
        pieces += f" of {region.min_volume_ml:g} ml or more"
    if region.most is not None:
        pieces += f", the {region.most} largest of a label"
    lengths = " x ".join(f"{mm:g}" for mm in region.size_mm or region.margin_mm)
    along = f"{lengths} mm (left-right, front-back, head-foot)"
    boxes = f"boxes of {along} about the middle of {pieces}"
    if region.size_mm is None:
        boxes = f"boxes around {pieces}, with a margin of {along}"
    if region.mode is LookMode.BOX:
        yield f"the network sees {boxes}; statistics are those of the {region.statistics}"
    else:
        yield f"of the image's windows those run that meet {boxes}"
    if region.not_found is NotFound.REFUSE:
        yield "where nothing is found the series is refused"
    else:
        yield "where nothing is found the result is empty, and says so"
    for view in region.views:
        turned = f" is mirrored ({', '.join(view.mirror)})," if view.mirror else ""
        numbers = ", ".join(f"{own} as {number}" for own, number in view.labels.items())
        yield f"label {view.label} of the first pass{turned} gives the network's labels {numbers}"
