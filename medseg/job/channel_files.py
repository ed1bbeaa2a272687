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
from medseg.job.channels import Study, stack_of_channels


def of_files(path: Path, bundle: Bundle, given: Mapping[str, Path]) -> tuple[Stack, Path]:
    """The stack of a bundle's channels, and the reference's file.

    path: where no file is given by its channel's name, that of the first, or of all.
    Raises UsageError, InputError, UnreadableInstance, ChannelsMissing, ChannelRefused, DoesNotFit.
    """
    assert bundle.channels is not None
    names, reference = bundle.channels.names, bundle.channels.reference
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UsageError(f"bundle {bundle.name} has no channel {unknown[0]!r}: {', '.join(names)}")
    if given:
        files = _all_named(path, bundle, given)
        return _stack(bundle, {name: read_nifti(file) for name, file in files.items()}), files[reference]
    volumes, files = read_volumes(path), dict.fromkeys(names, path)
    if len(volumes) == 1 and bundle.nnunet is not None and len(names) > 1:
        return with_channels(volumes[0], path, names), path
    if len(volumes) == 1 and len(names) > 1:
        files = dict(zip(names, (path, *beside(path, names)), strict=True))
        volumes = (volumes[0], *map(read_nifti, list(files.values())[1:]))
    if len(volumes) != len(names):
        raise InputError(f"{path}: {len(volumes)} volumes, expected {len(names)}: {', '.join(names)}")
    return _stack(bundle, dict(zip(names, volumes, strict=True))), files[reference]


def _all_named(path: Path, bundle: Bundle, given: Mapping[str, Path]) -> dict[str, Path]:
    """`path` is the one channel for which no file is given, or one of these files."""
    assert bundle.channels is not None
    files = dict(given)
    missing = [one.name for one in bundle.channels.each if one.name not in files and not one.optional]
    if len(missing) == 1 and path not in files.values():
        files[missing.pop()] = path
    if missing:
        listed = [(one.name, (), one.wanted) for one in bundle.channels.each]
        raise ChannelsMissing("", bundle.name, f"no file is named for {', '.join(missing)}", listed)
    if path not in files.values():
        raise UsageError(f"{path}: a file is named for each channel, and this is none of them")
    return files


def _stack(bundle: Bundle, volumes: Mapping[str, Stack]) -> Stack:
    return stack_of_channels(Study("", ()), bundle, {name: [stack] for name, stack in volumes.items()})
