"""From a bundle's folder to a `Bundle`.

    configs/metadata.json    version, licence, channels; key "medseg": what MONAI's metadata cannot say
    configs/inference.json   network_def, preprocessing, inferer, postprocessing
    models/                  the weights that inference.json loads (`weights`), else model.safetensors or model.pt
    LICENSE

Loading reads JSON and hashes files; it executes nothing (`safe_config`) and does not open the weights (`network`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

from medseg.bundle.bundle import Bundle, Postprocess, Segment
from medseg.bundle.channel_rules import read_channels
from medseg.bundle.digests import file_digest
from medseg.bundle.expects import read_default, read_expects
from medseg.bundle.nnunet.build import bundle_of_folder, bundle_of_metadata
from medseg.bundle.nnunet.folder import is_nnunet
from medseg.bundle.parts import NETWORK, Parts, read_parts
from medseg.bundle.region import Region
from medseg.bundle.region_rules import most_label, read_region, with_first_pass
from medseg.bundle.safe_config import SafeConfig, inside, read_json
from medseg.bundle.schema import Reader
from medseg.bundle.segments import read_lesions, segments_from_channels, segments_from_metadata
from medseg.bundle.weights import find_weights
from medseg.errors import InvalidBundle, NoSuchBundle

logger = logging.getLogger(__name__)

METADATA: Final = "configs/metadata.json"
INFERENCE: Final = "configs/inference.json"
PRECISIONS: Final = ("fp32", "bf16", "fp16")
# metadata's word -> DICOM Modality (PS3.3 C.7.3.1.1.1)
MODALITIES: Final = {"CT": "CT", "MR": "MR", "MRI": "MR", "PET": "PT", "PT": "PT", "US": "US"}


def load_bundle(path: Path | str, *, trust: bool = False, trained: bool = True) -> Bundle:
    """The bundle in a folder.

    trust: what the safe reader refuses is evaluated by MONAI's ConfigParser, which can run any code in it.
    trained: False for a bundle whose weights do not exist yet.
    Raises NoSuchBundle where the folder is not there, InvalidBundle naming the file and key that break a rule.
    """
    path = Path(path)
    if not path.is_dir() and is_nnunet(path.parent):
        return bundle_of_folder(path.parent.resolve(), path.name)
    if not path.is_dir():
        raise NoSuchBundle(str(path), ())
    root = path.resolve()
    if not (root / METADATA).exists() and not (root / INFERENCE).exists() and is_nnunet(root):
        return bundle_of_folder(root)
    about = _metadata(root)
    if "nnunet" in Reader(root.name, METADATA, about.content).reader("medseg"):
        bundle = bundle_of_metadata(root, METADATA, about)
    else:
        bundle = _monai_bundle(root, about, trust, trained)
    return with_first_pass(bundle, lambda folder: load_bundle(folder, trust=trust, trained=trained))


def _metadata(root: Path) -> Reader:
    if not (root / METADATA).exists() and not (root / INFERENCE).exists():
        why = "no such file: a bundle has configs/metadata.json and inference.json"
        raise InvalidBundle(root.name, METADATA, why)
    return Reader(root.name, METADATA, read_json(root.name, root, METADATA))


def _monai_bundle(root: Path, about: Reader, trust: bool, trained: bool) -> Bundle:
    """A bundle by MONAI's own description."""
    name = root.name
    if not (root / INFERENCE).exists() and any((root / "configs").glob("inference.y*ml")):
        raise InvalidBundle(name, INFERENCE, "the configuration is YAML: only JSON is read, convert it to JSON")
    config = SafeConfig(name, root, read_json(name, root, INFERENCE))
    own = about.reader("medseg")
    inputs, outputs = formats(about)
    parts = read_parts(name, root, config, inputs, outputs, trust=trust)
    key = next(key for key in NETWORK if key in config)
    weights = find_weights(name, root, config, key, trained=trained, trust=trust)
    members = _members(own, root, trained)
    _check_versions(name, about)
    region = read_region(own, _labels(parts))
    default, described = read_default(own)
    names = dict(enumerate(parts.recipe.keys)) | _channel_names(inputs)
    bundle = Bundle(
        name=name,
        version=about.text("version", "0"),
        path=root,
        digest=_digest(name, root, (weights.file, *members), scripts=parts.trusted),
        description=str(about.maybe_text("description") or about.maybe_text("task") or ""),
        licence=_licence(root, about),
        network=parts.network,
        weights=weights.file,
        weights_twin=weights.twin,
        weights_entry=weights.entry,
        in_channels=parts.in_channels,
        out_channels=parts.out_channels,
        recipe=parts.recipe,
        expects=read_expects(own, MODALITIES.get(str(inputs.get("modality", "")).strip().upper())),
        segments=_segments(own, outputs, parts, region),
        postprocess=_postprocess(own, parts, region),
        precisions=_precisions(own),
        default=default,
        described=described,
        research_only=own.flag("research_only", True),
        flips=_flips(own, len(parts.recipe.window.roi)),
        members=members,
        preprocessing=parts.preprocessing,
        postprocessing=parts.postprocessing,
        trusted=parts.trusted,
        lesions=read_lesions(own),
        channels=read_channels(own, parts.in_channels // parts.recipe.window.slices, names),
        region=region,
    )
    own.done()
    return bundle


def formats(about: Reader) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """`network_data_format` of the image and of the prediction; empty where the metadata does not say."""
    formats = about.reader("network_data_format").content
    both = []
    for side, usual in (("inputs", "image"), ("outputs", "pred")):
        entries = formats.get(side)
        entries = entries if isinstance(entries, Mapping) else {}
        entry = entries.get(usual, next(iter(entries.values()), {}))
        both.append(entry if isinstance(entry, Mapping) else {})
    return both[0], both[1]


def _members(own: Reader, root: Path, trained: bool) -> tuple[Path, ...]:
    """Further weights of the network, as paths within the bundle; none for a network that is yet to be trained."""
    files = own.texts("members")
    return tuple(inside(own.bundle, root, file) for file in files) if trained else ()


def _flips(own: Reader, axes: int) -> tuple[int, ...]:
    """`"tta": "flips"` is along every axis of a window, `"tta": [0]` along those named."""
    given = own.content.get("tta")
    if given is None or isinstance(given, str):
        chosen = own.maybe_text("tta") or "none"
        if chosen not in ("none", "flips"):
            raise own.wrong("tta", f"expected none, flips, or a list of axes, found {chosen!r}")
        return tuple(range(axes)) if chosen == "flips" else ()
    flips = own.integers("tta", None)
    if len(set(flips)) < len(flips) or not all(0 <= axis < axes for axis in flips):
        raise own.wrong("tta", f"expected axes of the window, each once, 0 to {axes - 1}, found {list(flips)}")
    return flips


def _digest(name: str, root: Path, weights: Sequence[Path], *, scripts: bool) -> str:
    """SHA-256 over names and bytes of the JSON files in configs/, of the scripts if they may run, and the weights."""
    files = sorted((root / "configs").glob("*.json"))
    if scripts:
        files += sorted(root.rglob("*.py"))
    files += [file for file in weights if file.exists()]
    total = hashlib.sha256()
    for file in files:
        relative = file.relative_to(root).as_posix()
        total.update(f"{relative}\0{file_digest(inside(name, root, relative))}\n".encode())
    return total.hexdigest()


def _licence(root: Path, about: Reader) -> str:
    for key in ("license", "licence"):
        if key in about:
            return about.text(key)
    file = root / "LICENSE"
    if not file.is_file() or not file.resolve().is_relative_to(root):
        return ""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return next((line.strip() for line in lines if line.strip()), "")[:200]


def _labels(parts: Parts) -> int:
    """How many labels the network gives."""
    return parts.out_channels - 1 if parts.recipe.exclusive else parts.out_channels


def _segments(own: Reader, outputs: Mapping[str, Any], parts: Parts, region: Region | None) -> tuple[Segment, ...]:
    exclusive = parts.recipe.exclusive
    most = most_label(region, _labels(parts))
    if "segments" in own:
        return segments_from_metadata(own, exclusive=exclusive, out_channels=most + exclusive)
    own.ignore("segments")
    if region is not None and region.views:
        raise own.wrong("segments", "missing: with views, what each number of the result stands for must be said")
    return segments_from_channels(_channel_names(outputs), exclusive=exclusive, out_channels=parts.out_channels)


def _channel_names(format_: Mapping[str, Any]) -> dict[int, str]:
    """`channel_def` of an input or an output, by number."""
    names = format_.get("channel_def")
    names = names if isinstance(names, Mapping) else {}
    return {int(key): str(name) for key, name in names.items() if str(key).isascii() and str(key).isdigit()}


def _postprocess(own: Reader, parts: Parts, region: Region | None) -> Postprocess:
    entry = own.reader("postprocess")
    most = most_label(region, _labels(parts))
    keep = entry.integers("keep_largest", None, default=())
    if not all(1 <= number <= most for number in keep):
        raise entry.wrong("keep_largest", f"expected segment numbers 1 to {most}, found {list(keep)}")
    postprocess = Postprocess(
        keep_largest=tuple(sorted({*keep, *parts.keep_largest})),
        fill_holes=entry.flag("fill_holes", False),
        min_volume_ml=entry.number("min_volume_ml", 0.0),
    )
    entry.done()
    return postprocess


def _precisions(own: Reader) -> tuple[str, ...]:
    given = own.texts("precisions")
    for precision in given:
        if precision not in PRECISIONS:
            raise own.wrong("precisions", f"expected {', '.join(PRECISIONS)}, found {precision!r}")
    return tuple(precision for precision in PRECISIONS if precision == "fp32" or precision in given)


def _check_versions(name: str, about: Reader) -> None:
    """Say so where the bundle was made for a newer MONAI; whether it works shows when its network is built."""
    wanted, installed = about.maybe_text("monai_version") or "0", installed_version("monai")
    if _release(wanted) > _release(installed):
        logger.warning("bundle %s was made for MONAI %s; %s is installed", name, wanted, installed)


def _release(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)
