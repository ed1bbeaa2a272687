"""What can go wrong, as a tree.

    MedsegError
    ├── UsageError               the call cannot be carried out as given
    │   ├── AmbiguousBundle          several bundles fit, none is the default
    │   ├── OutputExists             the result folder holds something else
    │   ├── UncheckedPrecision       the bundle was not checked in that precision
    │   └── MayOverlap               a label map is asked of segments that may overlap
    ├── InputError               what was given cannot be read or segmented
    │   ├── NoSuchInput
    │   ├── EmptyInput
    │   ├── UnsafeArchive            a zip that escapes its folder or explodes
    │   ├── UnreadableInstance       not DICOM, cut short, or malformed
    │   ├── UndecodablePixels
    │   ├── GeometryRefused          slices that do not form one volume; carries a Reason
    │   ├── DoesNotFit               the bundle was not made for this series
    │   ├── ChannelsMissing          a bundle of several series, and not each is one series of the study
    │   ├── ChannelRefused           series that cannot be looked at together; carries a code
    │   ├── RegionNotFound           a first pass found nothing for the bundle to look at
    │   ├── NoStudy                  a volume of a NIfTI file, and DICOM is asked for
    │   └── Incomplete               something of the input is in no result, and none may be missing
    ├── BundleError              the bundle cannot be used
    │   ├── NoSuchBundle
    │   ├── InvalidBundle            names the file and the key
    │   └── WeightsMismatch
    ├── ResourceError            memory, disk or device
    │   ├── NoDevice
    │   ├── OutOfMemory
    │   └── OutputNotWritable
    ├── Unforeseen               an error of ours: what was met was not thought of
    ├── VerificationFailed       a result that does not read back as written; never delivered
    └── Interrupted              the user or the scheduler said stop

Errors rise untouched to a boundary; each boundary (the command line, a DIMSE status, a retry rule) has one table.
`code` is the stable name that JSON output carries. Messages name UIDs and never people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from traceback import extract_tb


class MedsegError(Exception):
    """Base of everything medseg raises on purpose."""

    code = "error"


class UsageError(MedsegError):
    """The call cannot be carried out as given."""

    code = "usage"


class AmbiguousBundle(UsageError):
    """Several bundles fit a series and none of them is marked default."""

    code = "ambiguous_bundle"

    def __init__(self, series_uid: str, bundles: Sequence[str]) -> None:
        super().__init__(
            f"series {series_uid}: {len(bundles)} bundles fit ({', '.join(bundles)}) and none is the default"
        )
        self.series_uid, self.bundles = series_uid, tuple(bundles)


class OutputExists(UsageError):
    """The result folder already holds another result."""

    code = "output_exists"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} holds another result")
        self.path = path


class UncheckedPrecision(UsageError):
    """The bundle was not checked in the precision that is asked for."""

    code = "unchecked_precision"

    def __init__(self, bundle: str, precision: str, checked: Sequence[str]) -> None:
        allowed = ", ".join(checked) or "fp32"
        super().__init__(f"bundle {bundle} was not checked in {precision}: it allows {allowed}")
        self.bundle, self.precision, self.checked = bundle, precision, tuple(checked)


class MayOverlap(UsageError):
    """A label map, in which each voxel has one label, is asked of a bundle whose segments may overlap."""

    code = "may_overlap"

    def __init__(self, bundle: str) -> None:
        super().__init__(f"bundle {bundle}: its segments may overlap, and a label map holds one for each voxel")
        self.bundle = bundle


class InputError(MedsegError):
    """What was given cannot be read or segmented."""

    code = "input"


class NoSuchInput(InputError):
    """The path does not exist."""

    code = "no_such_input"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no such file or folder")
        self.path = path


class EmptyInput(InputError):
    """Nothing in the input is a DICOM image or a NIfTI volume."""

    code = "empty_input"

    def __init__(self, path: Path, looked_at: int = 0) -> None:
        super().__init__(f"{path}: no DICOM image found ({looked_at} files looked at)")
        self.path, self.looked_at = path, looked_at


class UnsafeArchive(InputError):
    """A zip archive that would write outside its folder or unpack without end."""

    code = "unsafe_archive"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: refused archive: {why}")
        self.path, self.why = path, why


class UnreadableInstance(InputError):
    """A file that is not DICOM, is cut short, or is malformed."""

    code = "unreadable_instance"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class UndecodablePixels(InputError):
    """Pixel data that no decoder here can read."""

    code = "undecodable_pixels"

    def __init__(self, sop_instance_uid: str, transfer_syntax: str, why: str) -> None:
        super().__init__(f"instance {sop_instance_uid}: pixels in {transfer_syntax} cannot be decoded: {why}")
        self.sop_instance_uid, self.transfer_syntax, self.why = sop_instance_uid, transfer_syntax, why


class GeometryRefused(InputError):
    """Slices that do not form one volume; `reason` is a `medseg.dicom.geometry.Reason`."""

    code = "geometry"

    def __init__(self, series_uid: str, reason: str, detail: str) -> None:
        super().__init__(f"series {series_uid}: {detail}")
        self.series_uid, self.reason, self.detail = series_uid, reason, detail
        self.code = str(reason)


class DoesNotFit(InputError):
    """The bundle was not made for this series."""

    code = "does_not_fit"

    def __init__(self, series_uid: str, bundle: str, reasons: Sequence[str]) -> None:
        super().__init__(f"series {series_uid}: bundle {bundle} does not fit: {'; '.join(reasons)}")
        self.series_uid, self.bundle, self.reasons = series_uid, bundle, tuple(reasons)


class ChannelsMissing(InputError):
    """A bundle looks at several series of a study, and for some of them there is none, or not only one.

    channels: each channel's name, what was found for it (series UIDs), and what would fit.
    """

    code = "channels_missing"

    def __init__(
        self, study_uid: str, bundle: str, why: str, channels: Sequence[tuple[str, Sequence[str], str]]
    ) -> None:
        names = ", ".join(name for name, _, _ in channels)
        where = f"study {study_uid}: " if study_uid else ""
        super().__init__(f"{where}bundle {bundle} needs {names} of one study; {why}")
        self.study_uid, self.bundle, self.channels = study_uid, bundle, tuple(channels)


class ChannelRefused(InputError):
    """Series that cannot be looked at together; `code` says why."""

    code = "channel"

    def __init__(self, series_uid: str, channel: str, code: str, why: str) -> None:
        series = f"series {series_uid}, " if series_uid else ""
        super().__init__(f"{series}channel {channel}: {why}")
        self.series_uid, self.channel, self.code = series_uid, channel, code


class RegionNotFound(InputError):
    """A first pass found nothing, so the bundle has nothing to look at, and wants no result that says so."""

    code = "region_not_found"

    def __init__(self, series_uid: str, bundle: str, first_pass: str) -> None:
        super().__init__(
            f"series {series_uid}: bundle {bundle} looks at regions, and its first pass ({first_pass}) found none: "
            "nothing was segmented"
        )
        self.series_uid, self.bundle, self.first_pass = series_uid, bundle, first_pass


class NoStudy(InputError):
    """DICOM is asked of a volume that belongs to no study."""

    code = "no_study"

    def __init__(self) -> None:
        super().__init__("a NIfTI volume has no study to write DICOM for")


class Incomplete(InputError):
    """Something of the input is in no result, and it was asked that nothing be missing."""

    code = "incomplete"

    def __init__(self, what: str, left_out: Sequence[str]) -> None:
        super().__init__(f"{what}: {'; '.join(left_out)}: nothing may be missing")
        self.left_out = tuple(left_out)


class BundleError(MedsegError):
    """The bundle cannot be used."""

    code = "bundle"


class NoSuchBundle(BundleError):
    """No bundle of that name or folder."""

    code = "no_such_bundle"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no bundle {name!r}: known are {', '.join(known) or 'none'}, or give a bundle's folder")
        self.name, self.known = name, tuple(known)


class InvalidBundle(BundleError):
    """A bundle whose files break the rules; names the file and the key."""

    code = "invalid_bundle"

    def __init__(self, bundle: str, key: str, why: str) -> None:
        super().__init__(f"bundle {bundle}: {key}: {why}")
        self.bundle, self.key, self.why = bundle, key, why


class WeightsMismatch(BundleError):
    """Weights that are not those of the bundle's network."""

    code = "weights_mismatch"

    def __init__(self, bundle: str, why: str) -> None:
        super().__init__(f"bundle {bundle}: the weights do not fit its network: {why}")
        self.bundle, self.why = bundle, why


class ResourceError(MedsegError):
    """Memory, disk or device did not suffice."""

    code = "resources"


class NoDevice(ResourceError):
    """The device that is asked for is not here."""

    code = "no_device"

    def __init__(self, name: str, count: int) -> None:
        super().__init__(f"device {name} is not here: {count} CUDA devices found")
        self.name, self.count = name, count


class OutOfMemory(ResourceError):
    """Memory of the machine or the device did not suffice."""

    code = "out_of_memory"


class OutputNotWritable(ResourceError):
    """The output folder cannot be written, or its disk is full."""

    code = "output_not_writable"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: cannot write results: {why}")
        self.path, self.why = path, why


class Unforeseen(MedsegError):
    """An error of ours, told as one sentence: what and where, without the values, which may be a patient's."""

    code = "unforeseen"

    def __init__(self, what: str, error: BaseException) -> None:
        last = extract_tb(error.__traceback__)[-1:]
        where = "".join(f" at {PurePath(frame.filename).name}:{frame.lineno}" for frame in last)
        super().__init__(f"{what}: {type(error).__name__}{where}: this was not foreseen; please report it")
        self.error = error


@contextmanager
def boundary(what: str) -> Iterator[None]:
    """What nobody thought of becomes `Unforeseen`, the error of one series or input, so that others go on.

    The one place of this package that catches any error. Ours, and those of memory and disk, pass as they are.
    """
    try:
        yield
    except (MedsegError, MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a boundary
        raise Unforeseen(what, error) from None  # which keeps it, and does not quote it


class VerificationFailed(MedsegError):
    """A result object that does not read back as it was written; it never leaves."""

    code = "verification_failed"


class Interrupted(MedsegError):
    """The user or the scheduler said stop."""

    code = "interrupted"

    def __init__(self) -> None:
        super().__init__("interrupted: no partial result was left")
