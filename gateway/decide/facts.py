"""What rules may ask of a series, from all of its instances, in whatever order they came.

    each instance --image_facts--> what it says, or why it is passed by
    all of them   --series_facts-> what most of the images that can be segmented say (`medseg.dicom.images.agreed`)

What is in a series and is none of its images that can be segmented decides nothing: a screen save, a dose report, a
localizer, an image whose geometry is refused, an object that cannot be read. Only where there is nothing else, images
that are refused speak for their series, and only where there is no image, whatever it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from gateway.decide import rules
from gateway.decide.rules import SeriesFacts
from gateway.settings.model import Rule
from medseg.dicom.classes import IMAGES, class_name
from medseg.dicom.images import agreed, refusal
from medseg.dicom.instance import Instance


@dataclass(frozen=True)
class ImageFacts:
    """What one instance says.

    passed_by: why it is no image that can be segmented; empty where it is one, or where nobody can look any more.
    facts: None where its header cannot be read. here: its file has not been deleted by retention.
    """

    sop_class_uid: str
    passed_by: str
    facts: SeriesFacts | None
    here: bool = True

    @property
    def is_image(self) -> bool:
        return self.sop_class_uid in IMAGES and not (self.facts and self.facts.ours)


def image_facts(
    instance: Instance | None,
    sop_class_uid: str,
    rules_: Iterable[Rule],
    *,
    calling_ae: str | None = None,
    called_ae: str | None = None,
    here: bool = True,
) -> ImageFacts:
    """instance: None where it cannot be read, or is not `here`."""
    if instance is None:
        return ImageFacts(sop_class_uid, "cannot be read" if here else "", None, here)
    facts = rules.series_facts(instance.header, rules_, calling_ae=calling_ae, called_ae=called_ae)
    return ImageFacts(sop_class_uid, _why_not(instance, sop_class_uid, facts), facts)


def _why_not(instance: Instance, sop_class_uid: str, facts: SeriesFacts) -> str:
    if facts.ours:
        return "made by medseg"
    if sop_class_uid not in IMAGES:
        return "no image that can be segmented"
    if "Rows" not in instance.header:
        return "without pixel data"
    refused = refusal(instance)
    return "" if refused is None else str(refused.reason)


def series_facts(images: Collection[ImageFacts]) -> SeriesFacts | None:
    """What rules may ask of a series; None where no header can be read. slices: of its images that can be segmented."""
    several = speaking(images)
    if not several:
        return None
    first = several[0]
    return replace(
        first,
        sop_class_uid=agreed(one.sop_class_uid for one in several),
        tags={keyword: agreed(one.tags.get(keyword, ()) for one in several) for keyword in first.tags},
        calling_ae=agreed(one.calling_ae for one in several),
        called_ae=agreed(one.called_ae for one in several),
        slices=sum(not one.passed_by for one in images),
        number=agreed(one.number for one in several),
        thickness_mm=agreed(one.thickness_mm for one in several),
        moment=agreed(one.moment for one in several),
    )


def speaking(images: Collection[ImageFacts]) -> list[SeriesFacts]:
    """The instances that speak for their series."""
    for some in (
        [image for image in images if not image.passed_by],
        [image for image in images if image.is_image],
        list(images),
    ):
        facts = [image.facts for image in some if image.facts is not None]
        if facts:
            return facts
    return []


def passed_by(images: Iterable[ImageFacts]) -> dict[str, int]:
    """What of a series is not segmented, by class and reason, and how many of it."""
    counted = Counter(_what(image) for image in images if image.passed_by)
    return dict(sorted(counted.items()))


def _what(image: ImageFacts) -> str:
    name = class_name(image.sop_class_uid)
    return name if image.facts and image.sop_class_uid not in IMAGES else f"{name}, {image.passed_by}"
