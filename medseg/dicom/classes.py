"""What an object is, by its SOP class and who made it."""

from __future__ import annotations

from typing import Any, Final

from pydicom import Dataset, uid

from medseg.dicom.headers import Attributes, is_directory, look
from medseg.dicom.instance import Instance

#: SOP classes whose instances may be segmented (PS3.4 B.5); results of ours are of other classes.
IMAGES: Final = frozenset(
    {
        uid.CTImageStorage,
        uid.EnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.MRImageStorage,
        uid.EnhancedMRImageStorage,
        uid.EnhancedMRColorImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.BreastTomosynthesisImageStorage,
        uid.UltrasoundImageStorage,
        uid.UltrasoundMultiFrameImageStorage,
        uid.XRayAngiographicImageStorage,
        uid.EnhancedXAImageStorage,
        uid.XRayRadiofluoroscopicImageStorage,
        uid.EnhancedXRFImageStorage,
        uid.XRay3DAngiographicImageStorage,
        uid.XRay3DCraniofacialImageStorage,
    }
)

#: Storage SOP classes that carry pixels or geometry and are not images to segment (PS3.4 B.5), by UID prefix.
_NOT_IMAGES = (
    "1.2.840.10008.1.3.10",  # media storage directory
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.9.",  # waveforms
    "1.2.840.10008.5.1.4.1.1.30",  # parametric map
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registrations, fiducials, segmentations, surfaces
    "1.2.840.10008.5.1.4.1.1.67",  # real world value mapping
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key objects
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481.",  # radiotherapy: dose, structures, plans
)
_RT_IMAGE = "1.2.840.10008.5.1.4.1.1.481.1"

#: Manufacturer (0008,0070) of all that medseg makes, in its objects and in their ContributingEquipmentSequence.
OUR_MANUFACTURER: Final = "medseg"


def class_name(sop_class_uid: str) -> str:
    """A SOP class as PS3.4 B.5 calls it, else its UID."""
    return uid.UID(sop_class_uid).name or "no SOP class"


def is_image_class(sop_class_uid: str) -> bool:
    """Whether objects of a SOP class may be images, as far as its UID tells."""
    return sop_class_uid == _RT_IMAGE or not sop_class_uid.startswith(_NOT_IMAGES)


def why_no_image(instance: Instance) -> str | None:
    """Why an instance holds no image at all, by its class; None where it may."""
    if is_directory(instance.header):
        return "a DICOMDIR: the files beside it were looked at instead"
    sop_class = uid.UID(instance.sop_class_uid)
    no_image = "Rows" not in instance.header and "Image Storage" not in sop_class.name
    if not is_image_class(sop_class) or no_image:
        return f"{sop_class.name}: not an image to segment"
    return None


def made_by_medseg(header: Dataset) -> bool:
    """Whether medseg made an object, or had a part in it."""
    seen = look(header)
    items: Any = seen.value("ContributingEquipmentSequence")
    makers: list[Attributes] = [seen, *(look(item) for item in items or () if isinstance(item, Dataset))]
    return any(maker.text("Manufacturer").casefold() == OUR_MANUFACTURER for maker in makers)
