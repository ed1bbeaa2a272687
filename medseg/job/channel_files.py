"""Channels that are NIfTI files: named one by one, CASE_0000.nii.gz with CASE_0001 ... beside it, or one file of all.

A file says of no patient, study or frame of reference: those given together are taken to be of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseg.bundle.bundle import Bundle
from medseg.dicom.nifti import read_nifti, read_volumes
from medseg.dicom.nifti_channels import beside, with_channels
from medseg.dicom.series import Stack
from medseg.errors import ChannelsMissing, InputError, UsageError
from medseg.job.channels import Named, Study, stack_of_channels


def of_files(path: Path, bundle: Bundle, given: Mapping[str, Path]) -> Stack:
    """The stack of a bundle's channels. path: where none is given by its name, the file of the first, or of all.

    Raises UsageError, InputError, UnreadableInstance, ChannelsMissing, ChannelRefused, DoesNotFit.
    """
    assert bundle.channels is not None
    names = bundle.channels.names
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UsageError(f"bundle {bundle.name} has no channel {unknown[0]!r}: {', '.join(names)}")
    if given:
        return _named(path, bundle, given)
    volumes = read_volumes(path)
    if len(volumes) == 1 and bundle.nnunet is not None and len(names) > 1:
        return with_channels(volumes[0], path, names)
    if len(volumes) == 1:
        files = beside(path, names) if len(names) > 1 else []
        volumes = (volumes[0], *map(read_nifti, files))
    if len(volumes) != len(names):
        raise InputError(f"{path}: {len(volumes)} volumes, expected {len(names)}: {', '.join(names)}")
    return _stack(bundle, {name: [stack] for name, stack in zip(names, volumes, strict=True)})


def _named(path: Path, bundle: Bundle, given: Mapping[str, Path]) -> Stack:
    """`path` is the one channel for which no file is given, or one of these files."""
    assert bundle.channels is not None
    files = dict(given)
    missing = [one.name for one in bundle.channels.each if one.name not in files and not one.optional]
    if len(missing) == 1 and path not in files.values():
        files[missing.pop()] = path
    if missing:
        listed = [(one.name, (), one.wanted) for one in bundle.channels.each]
        raise ChannelsMissing("", bundle.name, f"no file is named for {', '.join(missing)}", listed)
    return _stack(bundle, {name: [read_nifti(file)] for name, file in files.items()})


def _stack(bundle: Bundle, given: Named) -> Stack:
    return stack_of_channels(Study("", ()), bundle, given)
