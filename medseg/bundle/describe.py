"""What there is to say of a bundle: one line, all of it, and whether its network runs. Plain data for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from medseg.bundle.bundle import DESCRIBED, Bundle, Code, Segment
from medseg.bundle.digests import file_digest
from medseg.bundle.region_words import region_details
from medseg.errors import InvalidBundle


def summary(bundle: Bundle) -> dict[str, Any]:
    """What `medseg bundles list` shows."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "description": bundle.description,
        "path": str(bundle.path),
        "default": DESCRIBED if bundle.described else bundle.default,
        "research_only": bundle.research_only,
        "licence": bundle.licence,
    }


def details(bundle: Bundle) -> dict[str, Any]:
    """What `medseg bundles inspect` shows; `barriers` are the reasons why it cannot stream."""
    from medseg.bundle.codes import doubts
    from medseg.conditions.terms import wanted

    barriers = bundle.recipe.barriers()
    if bundle.region is not None:
        barriers = (*barriers, "the network looks where a first pass has found something")
    return summary(bundle) | {
        "digest": bundle.digest,
        "weights": bundle.weights.relative_to(bundle.path).as_posix(),
        "weights_sha256": file_digest(bundle.weights),
        "network": str(bundle.network.get("_target_", "made by MONAI's parser")),
        "inputs": _inputs(bundle),
        "precisions": list(bundle.precisions),
        "expects": asdict(bundle.expects) | {"when": [wanted(term) for term in bundle.expects.when]},
        "steps": [str(step) for step in bundle.recipe.steps],
        "window": str(bundle.recipe.window),
        "finish": str(bundle.recipe.finish),
        "streamable": not barriers,
        "barriers": list(barriers),
        "postprocess": asdict(bundle.postprocess),
        "lesions": bundle.lesions,
        "flips": list(bundle.flips),
        "members": [path.relative_to(bundle.path).as_posix() for path in bundle.members],
        "channels": _channels(bundle),
        "nnunet": _nnunet(bundle),
        "region": region_details(bundle),
        "segments": [_segment(segment) for segment in bundle.segments],
        "doubts": doubts(bundle.segments),
    }


def _channels(bundle: Bundle) -> list[dict[str, Any]]:
    each = bundle.channels.each if bundle.channels else ()
    return [{"name": one.name, "expected": one.wanted, "optional": one.optional} for one in each]


def _inputs(bundle: Bundle) -> str:
    channels, slices = bundle.image_channels, bundle.recipe.window.slices
    seen = f", {slices} slices at once" if slices > 1 else ""
    return f"{channels} channel{'s' * (channels > 1)}, {bundle.spatial_dims}D{seen}"


def verify(bundle: Bundle) -> dict[str, Any]:
    """Load the weights strictly and run the network once on zeros; and those of further stages and parts.

    Raises InvalidBundle, WeightsMismatch, and InvalidBundle where the output is not (1, out_channels, *window) or not
    finite.
    """
    import torch

    from medseg.bundle.codes import doubts
    from medseg.bundle.network import load_network

    parts = (part.bundle for part in bundle.parts)
    for other in (bundle.previous, bundle.first_pass, *parts, *bundle.averaged):
        if other is not None:
            verify(other)
    network = load_network(bundle, torch.device("cpu"))
    roi = tuple(size if size > 0 else 64 for size in bundle.recipe.window.roi)
    wanted = (1, bundle.out_channels, *roi)
    with torch.inference_mode():
        try:
            output = network(torch.zeros(1, bundle.in_channels, *roi))
        except (RuntimeError, ValueError) as error:
            raise InvalidBundle(bundle.name, "network_def", f"does not run on a window of {roi}: {error}") from error
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != wanted:
        raise InvalidBundle(bundle.name, "network_def", f"gives {shape} for one window, expected {wanted}")
    if not bool(torch.isfinite(output).all()):
        raise InvalidBundle(bundle.name, "network_def", "gives values that are not finite for a window of zeros")
    return {
        "bundle": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "weights": bundle.weights.relative_to(bundle.path).as_posix(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "verified": True,
        "doubts": doubts(bundle.segments),
    }


def _nnunet(bundle: Bundle) -> dict[str, Any] | None:
    """What nnU-Net's folder says, in few words; None for other bundles."""
    model = bundle.nnunet
    if model is None:
        return None
    return {
        "configuration": model.configuration,
        "channels": [f"{channel.name} ({channel.scheme})" for channel in model.channels],
        "spacing_mm": list(model.spacing_mm),
        "step": model.step,
        "gaussian": model.gaussian,
        "orientation": model.orientation or "as stored",
        "first_stage": bundle.previous and bundle.previous.nnunet and bundle.previous.nnunet.configuration,
        "cleanup": [" and ".join(map(str, labels)) for labels in model.cleanup],
        "cleanup_unread": model.cleanup_unread,
        "parts": [part.bundle.weights.parent.parent.name for part in bundle.parts],
        "average": [model.weights.parent.parent.name for model in bundle.averaged],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "number": segment.number,
        "label": segment.label,
        "category": _code(segment.category),
        "type": _code(segment.type),
        "region": segment.region and _code(segment.region),
        "laterality": segment.laterality and _code(segment.laterality),
        "color": list(segment.color),
        "volume_ml": segment.volume_ml,
        "one_piece": segment.one_piece,
        "beside_middle": segment.beside_middle,
    }


def _code(code: Code) -> str:
    return f"{code.scheme}:{code.value} {code.meaning}"
