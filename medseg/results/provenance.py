"""Who made a result, when, under which key, and what it takes the place of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import highdicom
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from medseg.bundle.bundle import Bundle
from medseg.names import named_uid
from medseg.results.encoding import plain
from medseg.results.identity import ResultKey

MANUFACTURER = "medseg"


@dataclass(frozen=True)
class Predecessor:
    """The result that a new one takes the place of: its key, and which of its objects there are. sr_class: of its
    report, another where that says why there was nothing, or that it is withdrawn."""

    key: ResultKey
    seg: bool
    sr: bool
    sr_class: str = Comprehensive3DSRStorage


def nothing_more(_: Dataset) -> None:
    """An object that is as it should be."""


@dataclass(frozen=True)
class Provenance:
    """Who made a result, when, and under which key.

    bundle_digest: SHA-256 (hex) of the bundle's configuration and weights.
    made_at: goes into ContentDate and ContentTime; never into a UID.
    research_use: mark the objects as not for diagnosis (ContentQualification RESEARCH, PS3.3 C.8.13.2.1.1).
    predecessors: what this result takes the place of, because images came late or were corrected.
    weights: the file that was loaded, within the bundle.
    finish: what else is done with an object once it says whose it is (`add_common_modules`), and again once it has
        descriptions and names beyond that.
    """

    key: ResultKey
    bundle: str
    bundle_version: str
    bundle_digest: str
    made_at: datetime
    research_use: bool = True
    predecessors: tuple[Predecessor, ...] = ()
    weights: str = ""
    finish: Callable[[Dataset], None] = nothing_more

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        key: ResultKey,
        made_at: datetime,
        *,
        research_use: bool = True,
        predecessors: tuple[Predecessor, ...] = (),
    ) -> Provenance:
        """What `bundle` makes under `key`; a bundle for research only stays marked as such."""
        research_use = research_use or bundle.research_only
        weights = bundle.weights.relative_to(bundle.path).as_posix()
        return cls(key, bundle.name, bundle.version, bundle.digest, made_at, research_use, predecessors, weights)

    def description(self, kind: str) -> str:
        """A SeriesDescription (LO, 64 characters) such as "AI hippocampus SEG, updated (research use)"."""
        ending = f" {kind}{', updated' if self.predecessors else ''}{' (research use)' if self.research_use else ''}"
        return f"AI {plain(self.bundle)}"[: 64 - len(ending)] + ending

    @property
    def algorithm(self) -> highdicom.AlgorithmIdentificationSequence:
        """Algorithm Identification Macro (PS3.3 10.16)."""
        return highdicom.AlgorithmIdentificationSequence(
            name=plain(self.bundle)[:64],
            family=codes.cid7162.ArtificialIntelligence,
            version=plain(self.bundle_version)[:64],
            source=MANUFACTURER,
            parameters={"bundle_sha256": self.bundle_digest},
        )

    @property
    def equipment(self) -> Dataset:
        """An item of ContributingEquipmentSequence: the algorithm, as IHE AI Results asks of each one."""
        item = Dataset()
        item.Manufacturer = MANUFACTURER
        item.ManufacturerModelName = plain(self.bundle)[:64]
        item.DeviceSerialNumber = self.bundle_digest
        item.SoftwareVersions = plain(self.bundle_version)[:64]
        item.DeviceUID = named_uid(f"bundle {self.bundle_digest}")
        item.ContributionDateTime = self.made_at.strftime("%Y%m%d%H%M%S")
        item.ContributionDescription = "Segmentation algorithm"
        item.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept.from_code(codes.cid7005.ProcessingEquipment)]
        return item
