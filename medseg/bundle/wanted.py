"""What a bundle is made for, in words."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.bundle.bundle import Bundle, Expects
from medseg.conditions.terms import in_words


def wanted(bundle: Bundle) -> str:
    """What a series must be, or the series of a study; "any series" where nothing is said of that."""
    if bundle.channels is not None:
        each = (f"{one.name}{' (optional)' if one.optional else ''}: {one.wanted}" for one in bundle.channels.each)
        return f"of one study {'; '.join(each)}"
    return ", ".join(_wanted(bundle.expects)) or "any series"


def _wanted(expects: Expects) -> Iterator[str]:
    if expects.modality:
        yield " or ".join(expects.modality)
    if expects.body_part:
        yield f"body part {' or '.join(expects.body_part)}"
    if expects.when:
        yield in_words(expects.when)
    if expects.min_slices > 1:
        yield f"{expects.min_slices} slices or more"
    for axis, (least, most) in zip("xyz", expects.fov_mm or (), strict=False):
        yield f"{least:g} to {most:g} mm along {axis}"
