"""Several NIfTI files that are one input: CASE_0000.nii.gz, CASE_0001.nii.gz ..., a channel each (nnU-Net's naming)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import ChannelImage, Finding, Stack
from medseg.errors import InputError

_FIRST: Final = re.compile(r"(.*)_0000(\.nii(?:\.gz)?)", re.IGNORECASE | re.DOTALL)
_SAME: Final = 1e-3  # of a spacing; mm for places


def with_channels(stack: Stack, path: Path, names: tuple[str, ...]) -> Stack:
    """A stack that was read from `path`, with the other channels that lie beside it. names: of all channels.

    Raises InputError where one is missing, or has other voxels; UnreadableInstance. Voxels that lie elsewhere in the
    patient are a finding.
    """
    files = beside(path, names)
    channels = tuple(read_nifti(file) for file in files)
    findings = list(stack.findings)
    for name, file, channel in zip(names[1:], files, channels, strict=True):
        if channel.shape != stack.shape or not np.allclose(channel.spacing_mm, stack.spacing_mm, rtol=_SAME):
            raise InputError(f"{file}: {_grid(channel)}, expected {_grid(stack)}, as {names[0]} has")
        if not np.allclose(_stored(channel), _stored(stack), atol=_SAME):
            detail = f"channel {name} lies elsewhere in the patient than {names[0]}: they are taken as if they did not"
            findings.append(Finding("channels_apart", detail))
    images = [stack, *(_turned_alike(channel, stack) for channel in channels)]
    made = tuple(ChannelImage(name, image) for name, image in zip(names, images, strict=True))
    return replace(stack, channels=made, findings=tuple(findings))


def beside(path: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of all channels but the first, whose file is `path`. Raises InputError where one is not there."""
    parts = _FIRST.fullmatch(path.name)
    wanted = f"{len(names)} channels, {', '.join(names)}"
    if parts is None:
        raise InputError(f"{path}: expected {wanted}: name the first CASE_0000.nii.gz, with CASE_0001 ... beside it")
    files = [path.with_name(f"{parts[1]}_{number:04d}{parts[2]}") for number in range(1, len(names))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path}: expected {wanted}, and {', '.join(missing)} is not beside it")
    return files


def _turned_alike(channel: Stack, stack: Stack) -> Stack:
    """Planes in the order in which the first channel's are, as all of them are stored."""
    turned = [one.stored is not None and one.stored.turned for one in (channel, stack)]
    return channel if turned[0] == turned[1] else replace(channel, slices=channel.slices[::-1])


def _grid(stack: Stack) -> str:
    mm = " x ".join(f"{size:g}" for size in stack.spacing_mm)
    return f"{' x '.join(map(str, stack.shape))} voxels of {mm} mm"


def _stored(stack: Stack) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The first and the last voxel, as they are stored."""
    slices = stack.slices[::-1] if stack.stored is not None and stack.stored.turned else stack.slices
    first, last = slices[0].plane, slices[-1].plane
    return np.concatenate([first.position_mm, last.position_mm, first.row_direction, first.column_direction])
