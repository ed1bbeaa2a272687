"""What the storage SCP accepts: SOP classes and transfer syntaxes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000MCLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

# In the order of preference where a sender offers several in one context: what needs no decoder first, then lossless.
TRANSFER_SYNTAXES: tuple[UID, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
    JPEG2000MCLossless,
    DeflatedExplicitVRLittleEndian,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
    JPEG2000MC,
    JPEGExtended12Bit,
    JPEGBaseline8Bit,
    ExplicitVRBigEndian,
)
STORAGE_SOP_CLASSES = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."  # composite storage SOP classes, those of later editions too


def is_storage(abstract_syntax: UID) -> bool:
    """Whether a proposed SOP class is taken for storage: known, of a later edition of the standard, or private."""
    return (
        abstract_syntax in STORAGE_SOP_CLASSES
        or abstract_syntax.startswith(STORAGE_ROOT)
        or not abstract_syntax.startswith("1.2.840.10008.")
    )


def supported(proposed: Iterable[PresentationContext]) -> list[PresentationContext]:
    """The contexts this SCP supports, of those a peer proposes."""
    classes = {context.abstract_syntax for context in proposed if context.abstract_syntax is not None}
    return [_context(uid) for uid in sorted(classes) if uid == Verification or is_storage(uid)]


@lru_cache(maxsize=1024)
def _context(abstract_syntax: UID) -> PresentationContext:
    """Kept, since a sender may propose 128 of them and making one takes 0.2 ms; nobody changes it."""
    syntaxes: list[str | UID] = list(TRANSFER_SYNTAXES)
    return build_context(abstract_syntax, syntaxes[:2] if abstract_syntax == Verification else syntaxes)
