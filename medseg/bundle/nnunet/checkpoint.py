"""A fold's checkpoint: tensors, and what the trainer says of itself, read without unpickling anything else.

`torch.load(weights_only=True)` makes tensors, numbers, texts and plain containers. nnU-Net's checkpoints hold numpy's
numbers beside them (`logging`, `_best_ema`), which need four names more; any other name is refused by torch.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from medseg.bundle.unreadable import UNREADABLE
from medseg.errors import InvalidBundle

WEIGHTS: Final = "network_weights"
PREFIXES: Final = ("module.", "_orig_mod.")  # of what ran on several GPUs, or was compiled
LARGEST_PICKLE: Final = 32 << 20  # bytes; that of a thousand epochs' losses has 100 kB
_SCALAR: Final[Any] = np.float64(0).__reduce__()[0]  # by which numpy pickles its numbers
NUMBERS: Final = (
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
)


@dataclass(frozen=True, eq=False)
class FoldCheckpoint:
    """configuration: of the plans, which the folder's name does not decide. mirrored: axes of a window; empty: none."""

    weights: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirrored: tuple[int, ...]


def read_checkpoint(bundle: str, path: Path, key: str) -> FoldCheckpoint:
    """key: how the file is called in errors. Tensors lie in the file until they are used. Raises InvalidBundle."""
    content = _content(bundle, path, key)
    arguments = content.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    trainer, mirrored = content.get("trainer_name"), content.get("inference_allowed_mirroring_axes")
    if not isinstance(configuration, str) or not isinstance(trainer, str):
        why = "no checkpoint of nnU-Net: init_args with a configuration, and trainer_name, are missing"
        raise InvalidBundle(bundle, key, why)
    axes = () if mirrored is None else mirrored
    if not isinstance(axes, list | tuple) or not all(type(axis) is int and 0 <= axis <= 2 for axis in axes):
        why = f"inference_allowed_mirroring_axes: expected axes of a window or none, found {mirrored!r:.80}"
        raise InvalidBundle(bundle, key, why)
    weights = _weights(bundle, content.get(WEIGHTS), key)
    return FoldCheckpoint(weights, configuration, trainer, tuple(dict.fromkeys(axes)))


def _content(bundle: str, path: Path, key: str) -> Mapping[str, Any]:
    _check_archive(bundle, path, key)
    try:
        with torch.serialization.safe_globals(list(NUMBERS)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named[1]:.80}" if named else "it is damaged"
        raise InvalidBundle(bundle, key, f"not a checkpoint of tensors and numbers alone: {what}") from error
    if not isinstance(content, Mapping):
        raise InvalidBundle(bundle, key, f"no checkpoint of nnU-Net: expected a dict, found {type(content).__name__}")
    return content


def _check_archive(bundle: str, path: Path, key: str) -> None:
    """Raise InvalidBundle unless it is the kind of zip that torch.save writes: nothing packed, a small pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except UNREADABLE as error:
        why = "not a checkpoint of nnU-Net version 2: it is damaged, cut short, or of another program"
        raise InvalidBundle(bundle, key, why) from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if any(name == "constants.pkl" or name.startswith("code/") for name in names):
        raise InvalidBundle(bundle, key, "a TorchScript archive, which can run code: a checkpoint is expected")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InvalidBundle(bundle, key, "packed: a checkpoint lies in its file as it is")
    if any(
        name.endswith(".pkl") and entry.file_size > LARGEST_PICKLE for name, entry in zip(names, entries, strict=True)
    ):
        raise InvalidBundle(bundle, key, f"what stands beside its tensors has more than {LARGEST_PICKLE >> 20} MiB")


def _weights(bundle: str, given: Any, key: str) -> dict[str, Tensor]:
    if not isinstance(given, Mapping) or not given:
        raise InvalidBundle(bundle, key, f"no checkpoint of nnU-Net: {WEIGHTS} with names and tensors is missing")
    weights: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InvalidBundle(bundle, key, f"{WEIGHTS}: expected names and tensors, found {type(tensor).__name__}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InvalidBundle(bundle, key, f"{WEIGHTS}: {name:.80} claims more values than it has")
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        weights[name] = tensor
    return weights


def checked(bundle: str, key: str, network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under each of the names that the network has for one tensor. network: of shapes alone.

    Raises InvalidBundle where names of one tensor have different values, or a value is not finite: labels would be
    background everywhere, and look like a finding.
    """
    groups: dict[int, list[str]] = {}
    for name, held in (
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ):
        groups.setdefault(id(held), []).append(name)
    complete = dict(weights)
    for names in groups.values():
        there = [name for name in names if name in weights]
        for name in there[1:]:
            if not _same(weights[name], weights[there[0]]):
                why = f"{WEIGHTS}: {there[0]} and {name} are one tensor, and have different values"
                raise InvalidBundle(bundle, key, why)
        complete |= {name: weights[there[0]] for name in names if there and name not in weights}
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidBundle(bundle, key, f"{WEIGHTS}: {name:.80} holds values that are not finite")
    return complete


def _same(tensor: Tensor, other: Tensor) -> bool:
    return tensor is other or tensor.data_ptr() == other.data_ptr() or torch.equal(tensor, other)
