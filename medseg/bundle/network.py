"""The network of a bundle, with its weights.

Weights are safetensors, or a PyTorch file of tensors read with `weights_only=True`. A TorchScript archive or a pickled
module is recognised and refused before anything in it is read, since either can run code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.ensemble import Ensemble
from medseg.bundle.nnunet.checkpoint import checked, read_checkpoint
from medseg.bundle.parts import NETWORK
from medseg.bundle.targets import TARGETS
from medseg.bundle.unreadable import UNREADABLE
from medseg.errors import InvalidBundle, OutOfMemory, WeightsMismatch

# arguments of earlier MONAI versions that did not change the weights
FORMER_ARGUMENTS: Final[Mapping[str, frozenset[str]]] = {"SwinUNETR": frozenset({"img_size"})}
# packages beyond MONAI's own that a network needs, only noticed when it runs
NEEDS: Final[Mapping[str, str]] = {"SwinUNETR": "einops", "UNETR": "einops"}
# training checkpoints put the state dict under one of these
NESTED: Final = ("model", "state_dict", "net")


def load_network(bundle: Bundle, device: torch.device) -> nn.Module:
    """The bundle's network in eval mode on `device`: (B, in_channels, *S) -> (B, out_channels, *S).

    Where the bundle has members or flips, an `Ensemble` of them.
    Raises InvalidBundle where the network cannot be built or a file is not one of tensors, WeightsMismatch where
    the tensors are not the network's.
    """
    networks = [_with_weights(bundle, path) for path in (bundle.weights, *bundle.members)]
    if bundle.weights_twin is not None:
        _check_twin(bundle, networks[0], bundle.weights_twin)
    network = Ensemble(networks, bundle.flips) if bundle.members or bundle.flips else networks[0]
    try:
        return network.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"bundle {bundle.name}: its network does not fit into the memory of {device}") from error


def _with_weights(bundle: Bundle, path: Path) -> nn.Module:
    weights = read_weights(bundle, path)
    if bundle.nnunet is not None:
        with torch.device("meta"):
            sketch = build_network(bundle)
        weights = checked(bundle.name, _key(bundle, path), sketch, weights)
    try:
        with torch.device("meta"):  # shapes only: no memory for a network that is not the one of the weights
            _compare(bundle, build_network(bundle).state_dict(), weights)
    except InvalidBundle:
        pass  # some networks compute while they are made, which needs real tensors; built below all the same
    network = build_network(bundle)
    _compare(bundle, network.state_dict(), weights)
    network.load_state_dict(weights, strict=True)
    return network


def _check_twin(bundle: Bundle, network: nn.Module, twin: Path) -> None:
    """Raise InvalidBundle where a file beside the weights, which counts as the same, holds others."""
    others, mine = read_weights(bundle, twin), network.state_dict()
    if others.keys() != mine.keys() or not all(torch.equal(mine[key], others[key].to(mine[key])) for key in mine):
        name, other = (path.relative_to(bundle.path).as_posix() for path in (bundle.weights, twin))
        raise InvalidBundle(bundle.name, name, f"holds other weights than {other} beside it: remove the one not meant")


def build_network(bundle: Bundle) -> nn.Module:
    """The bundle's network, newly initialised. Raises InvalidBundle."""
    if not bundle.network:
        from medseg.bundle.trusted import parsed

        network = parsed(bundle.name, bundle.path, NETWORK)
        if not isinstance(network, nn.Module):
            raise InvalidBundle(bundle.name, "network_def", f"expected a network, found {type(network).__name__}")
        return network
    target = TARGETS[bundle.network["_target_"]]
    needed = NEEDS.get(target.name)
    if needed and find_spec(needed) is None:
        why = f"{target.name} needs the Python package {needed}: pip install {needed}"
        raise InvalidBundle(bundle.name, "network_def::_target_", why)
    former = FORMER_ARGUMENTS.get(target.name, frozenset())
    arguments = {key: value for key, value in bundle.network.items() if key != "_target_" and key not in former}
    if "pretrained" in arguments:  # would fetch weights from the network; the bundle has its own
        arguments["pretrained"] = False
    try:
        made = target.load()(**arguments)
    except (ImportError, AttributeError) as error:
        from monai import __version__

        why = f"{target.name} is not in MONAI {__version__}, which is installed ({error})"
        raise InvalidBundle(bundle.name, "network_def::_target_", why) from error
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        raise InvalidBundle(bundle.name, "network_def", f"{target.name} cannot be made: {error}") from error
    except MemoryError as error:
        raise OutOfMemory(f"bundle {bundle.name}: its network does not fit into memory") from error
    assert isinstance(made, nn.Module)
    return made


def read_weights(bundle: Bundle, path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU. Raises InvalidBundle for a file that is not a plain file of tensors."""
    name, key = bundle.name, _key(bundle, path)
    if not path.is_file():
        raise InvalidBundle(name, key, "no such file: the bundle has no weights")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path, device="cpu"))
        except (SafetensorError, OSError) as error:
            raise InvalidBundle(name, key, f"not a safetensors file: {error}") from error
    if bundle.nnunet is not None:
        checkpoint = read_checkpoint(name, path, key)
        if checkpoint.configuration != bundle.nnunet.configuration:
            why = f"trained for {checkpoint.configuration:.80}, expected {bundle.nnunet.configuration}"
            raise InvalidBundle(name, key, why)
        return dict(checkpoint.weights)
    if _is_torchscript(path):
        raise InvalidBundle(name, key, "a TorchScript archive, which can run code: save the state dict instead")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        why = "not a file of plain tensors: it is damaged, or unpickling it could run code; save the state dict"
        raise InvalidBundle(name, key, why) from error
    first = (bundle.weights_entry,) if bundle.weights_entry and path in (bundle.weights, bundle.weights_twin) else ()
    for nested in (*first, *(() if first and _has(content, first[0]) else NESTED)):
        if _has(content, nested):
            content = content[nested]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidBundle(name, key, "expected a state dict: names and tensors")
    return {str(tensor): value for tensor, value in content.items()}


def _key(bundle: Bundle, path: Path) -> str:
    """How errors call a file."""
    return path.relative_to(bundle.path).as_posix() if path.is_relative_to(bundle.path) else path.name


def _has(content: Any, nested: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(nested), Mapping)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry.partition("/")[2] for entry in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return any(entry == "constants.pkl" or entry.startswith("code/") for entry in entries)


def _compare(bundle: Bundle, expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsMismatch unless names and shapes are the same."""
    faults = [
        _listed("missing", sorted(expected.keys() - weights.keys())),
        _listed("not in the network", sorted(weights.keys() - expected.keys())),
        _listed(
            "of another shape",
            [
                f"{key} ({_shape(weights[key])}, expected {_shape(tensor)})"
                for key, tensor in expected.items()
                if key in weights and weights[key].shape != tensor.shape
            ],
        ),
    ]
    if any(faults):
        raise WeightsMismatch(bundle.name, "; ".join(fault for fault in (*faults, _trainer(bundle)) if fault))


def _trainer(bundle: Bundle) -> str:
    """Of nnU-Net's folders, who may have built the network that the weights are of."""
    path = bundle.weights
    if bundle.nnunet is None or path.suffix == ".safetensors":
        return ""
    name = read_checkpoint(bundle.name, path, _key(bundle, path)).trainer
    return f"its trainer, {name:.80}, may have built another network than the plans say, and is not run"


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
