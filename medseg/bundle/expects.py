"""What a series must be for a bundle to fit, from the metadata's "medseg" key."""

from __future__ import annotations

from medseg.bundle.bundle import Expects
from medseg.bundle.schema import Reader


def read_expects(own: Reader, modality: str | None) -> Expects:
    """modality: what is expected where the metadata does not say. Raises InvalidBundle."""
    if "expects" not in own:
        own.ignore("expects")
        return Expects(modality=(modality,) if modality else ())
    entry = own.reader("expects")
    expects = Expects(
        modality=tuple(text.upper() for text in entry.texts("modality")),
        body_part=tuple(text.upper() for text in entry.texts("body_part")),
        series_description=entry.maybe_text("series_description"),
        fov_mm=entry.ranges("fov_mm", 3),
        values=entry.range("values"),
        min_slices=entry.integer("min_slices", 1),
    )
    entry.done()
    return expects
