"""Images whose pixels may show whose they are: refused unless somebody has looked at them.

Nothing here looks at pixels. What is refused is what an image says of itself; faces are in every image of a head, and
no image says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydicom import Dataset, uid

from medseg.dicom.headers import look
from medseg.dicom.instance import Instance
from medseg.errors import InputError

#: Of pictures that a person or a device's screen wrote on: ultrasound, endoscopes, cameras, scanned paper, film.
_WRITTEN_ON: Final = frozenset(("DG", "DM", "DOC", "ECG", "ES", "GM", "HC", "OT", "SM", "TG", "US", "XC"))
_SCREENS: Final = (uid.SecondaryCaptureImageStorage, uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage)
_MULTI_FRAME_CAPTURES: Final = f"{uid.SecondaryCaptureImageStorage}."
_OVERLAY_BITS: Final = range(0x60000102, 0x60200102, 0x20000)  # OverlayBitPosition of each group


class BurnedIn(InputError):
    """The pixels of an image may show whose it is."""

    code = "burned_in"

    def __init__(self, series_uid: str, why: str) -> None:
        super().__init__(f"series {series_uid}: pixels may show whose they are: {why}")
        self.series_uid, self.why = series_uid, why


def burned_in(instances: Iterable[Instance]) -> str | None:
    """Why the pixels of some image may show whose they are; None where no image says anything like that."""
    return next((why for instance in instances if (why := _why(instance.header)) is not None), None)


def _why(header: Dataset) -> str | None:
    view = look(header)
    if view.text("BurnedInAnnotation").upper() == "YES":
        return "BurnedInAnnotation is YES"
    if view.text("BurnedInAnnotation").upper() == "NO":
        return None
    sop_class = view.text("SOPClassUID")
    if sop_class in _SCREENS or sop_class.startswith(_MULTI_FRAME_CAPTURES):
        return f"{uid.UID(sop_class).name}, and BurnedInAnnotation is not NO"
    if view.text("Modality").upper() in _WRITTEN_ON:
        return f"modality {view.text('Modality')}, and BurnedInAnnotation is not NO"
    if "SCREEN SAVE" in view.text("ImageType").upper() or view.text("ConversionType"):
        return "a capture of a screen or of film, and BurnedInAnnotation is not NO"
    overlay = any(tag in header and header[tag].value for tag in _OVERLAY_BITS)
    return "an overlay lies in its pixels" if overlay else None
