"""From a folder of nnU-Net to a `Bundle`: as it is, or with what a bundle's metadata adds (`options`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from medseg.bundle.bundle import Bundle, Code, Expects, MergedPart, Postprocess, Segment
from medseg.bundle.channel_rules import read_channels
from medseg.bundle.channels import by_names
from medseg.bundle.digests import file_digest
from medseg.bundle.expects import read_default, read_expects
from medseg.bundle.nnunet.average import average_of
from medseg.bundle.nnunet.dataset import MOST_LABEL, read_dataset
from medseg.bundle.nnunet.folder import (
    DATASET,
    PLANS,
    TrainedFolder,
    find_previous,
    model_name,
    read_best_average,
    read_trained,
)
from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.nnunet.options import Models, Options, PartOptions, read_options
from medseg.bundle.nnunet.plans import read_plans
from medseg.bundle.nnunet.postprocessing import FILE, find_postprocessing, read_postprocessing
from medseg.bundle.nnunet.whole import EVENLY, why_whole
from medseg.bundle.recipe import Activation, Blend, Finish, Order, Recipe, Window
from medseg.bundle.region_rules import most_label, read_region
from medseg.bundle.safe_config import inside
from medseg.bundle.schema import Reader
from medseg.bundle.segments import TISSUE, palette, read_lesions, segments_from_metadata
from medseg.errors import InvalidBundle

FINISH: Final = Finish(Activation.NONE, None, Order.PROBABILITIES_FIRST, nearest=False)


def bundle_of_folder(root: Path, configuration: str | None = None) -> Bundle:
    """The bundle that a folder of nnU-Net is, as it lies there. root: resolved. Raises InvalidBundle.

    configuration: the one that is meant, in the folder of a dataset.
    """
    options = Options(configuration=configuration)
    mean = _best_average(root, "", options)
    if mean is not None:
        return mean
    trained = read_trained(root.name, root, "", options)
    return replace(_bundle(trained, options), name=model_name(root, trained))


def bundle_of_metadata(root: Path, file: str, about: Reader) -> Bundle:
    """The bundle whose metadata names a folder of nnU-Net. file: the metadata's. Raises InvalidBundle."""
    own = about.reader("medseg")
    made = _made(root, read_options(own.reader("nnunet")))
    labels = max(segment.number for segment in made.segments)
    region = read_region(own, labels)
    most, segments = most_label(region, labels), made.segments
    if "segments" in own:
        segments = segments_from_metadata(own, exclusive=True, out_channels=most + 1)
    elif region is not None and region.views:
        raise own.wrong("segments", "missing: with views, what each number of the result stands for must be said")
    own.ignore("segments")
    modality = next(iter(made.expects.modality), None)
    written = file_digest(inside(root.name, root, file))
    default, described = read_default(own)
    bundle = replace(
        made,
        name=root.name,
        path=root,
        version=about.text("version", "0"),
        digest=_digest((written, made.digest)),
        description=str(about.maybe_text("description") or about.maybe_text("task") or made.description),
        licence=str(about.maybe_text("license") or about.maybe_text("licence") or made.licence),
        segments=segments,
        expects=read_expects(own, modality),
        channels=read_channels(own, made.image_channels, _names(made)),
        default=default,
        described=described,
        research_only=own.flag("research_only", True),
        lesions=read_lesions(own),
        region=region,
    )
    own.done()
    return bundle


def _made(root: Path, models: Models) -> Bundle:
    if models.parts:
        return _merged(root, models.parts)
    if models.averaged:
        chosen = [(read_trained(root.name, root, part.folder, part.options), part.options) for part in models.averaged]
        file = models.options.postprocessing
        return _average(root, chosen, file if isinstance(file, str) else None)
    folder, options = models.folder, models.options
    return _best_average(root, folder, options) or _bundle(read_trained(root.name, root, folder, options), options)


def _best_average(root: Path, folder: str, options: Options) -> Bundle | None:
    """The average of several models of a dataset, where nnU-Net found that to be the best."""
    models, about = read_best_average(root.name, root, folder, options)
    if not models:
        return None
    file: str | None = f"{about}/{FILE}"
    if options.postprocessing is not True:
        file = options.postprocessing or None
    unread = options.postprocessing is True and not (root / about / FILE).is_file()
    return _average(root, [(model, options) for model in models], None if unread else file, unread=unread)


def _average(
    root: Path, models: Sequence[tuple[TrainedFolder, Options]], file: str | None, *, unread: bool = False
) -> Bundle:
    """file: that says how the average is cleaned up."""
    each = [_bundle(trained, replace(options, postprocessing=False)) for trained, options in models]
    cleanup = () if file is None else read_postprocessing(root.name, root, file)
    return average_of(root.name, each, cleanup, unread=unread)


def _bundle(trained: TrainedFolder, options: Options, later: tuple[str, ...] = ()) -> Bundle:
    """later: configurations of whose cascade it is an earlier stage."""
    if trained.configuration in later:
        line = " after ".join((*later, trained.configuration))
        raise InvalidBundle(trained.bundle, _beside(trained, PLANS), f"a cascade that leads to itself: {line}")
    dataset = read_dataset(trained.dataset)
    model, network = read_plans(trained.plans, trained.configuration, dataset)
    if not all(axis < len(model.patch) for axis in trained.mirrored):
        why = f"mirrored along {list(trained.mirrored)}, but windows have {len(model.patch)} axes"
        raise InvalidBundle(trained.bundle, trained.files[0], why)
    model = _as_asked(trained, model, options)
    digests = [_file_digest(trained, file) for file in trained.files]
    digests += [_file_digest(trained, _beside(trained, file)) for file in (PLANS, DATASET)]
    model, file = _with_cleanup(trained, model, options)
    digests += [_file_digest(trained, file)] if file else []
    previous = None
    if model.previous_stage is not None:
        earlier = find_previous(trained, model.previous_stage, options)
        previous = _bundle(earlier, options.for_first_stage(), (*later, trained.configuration))
        digests.append(previous.digest)
        _check_stages(trained, model, previous)
    weights, *members = (inside(trained.bundle, trained.root, file) for file in trained.files)
    return Bundle(
        name=trained.bundle,
        version="0",
        path=trained.root,
        digest=_digest((repr(model), trained.mirrored, *digests)),
        description=dataset.description,
        licence=dataset.licence,
        network=network,
        weights=weights,
        in_channels=network["in_channels"],
        out_channels=network["out_channels"],
        recipe=_recipe(model),
        expects=Expects(modality=dataset.modality),
        segments=_segments(dict(model.labels.names)),
        postprocess=Postprocess(),
        precisions=("fp32", "fp16"),  # nnU-Net itself runs in fp16 on a GPU
        default=False,
        research_only=True,
        flips=trained.mirrored,
        members=tuple(members),
        nnunet=model,
        previous=previous,
        channels=by_names(list(dataset.channels)) if len(dataset.channels) > 1 else None,
    )


def _names(bundle: Bundle) -> dict[int, str]:
    assert bundle.nnunet is not None
    return {number: channel.name for number, channel in enumerate(bundle.nnunet.channels)}


def _as_asked(trained: TrainedFolder, model: NnUNet, options: Options) -> NnUNet:
    """A model with what the metadata says of it."""
    if model.reorients and options.orientation not in (None, model.orientation):
        why = f"the plans' reader turns images to {model.orientation}, but the orientation is {options.orientation}"
        raise InvalidBundle(trained.bundle, _beside(trained, PLANS), why)
    return replace(
        model,
        orientation=options.orientation or model.orientation,
        step=model.step if options.step is None else options.step,
        gaussian=model.gaussian if options.gaussian is None else options.gaussian,
    )


def _with_cleanup(trained: TrainedFolder, model: NnUNet, options: Options) -> tuple[NnUNet, str | None]:
    """A model with its clean-up, and the file that says which, if any does."""
    if options.postprocessing is False:
        return model, None
    file, unread = find_postprocessing(trained.root, trained.folder, trained.folds)
    if isinstance(options.postprocessing, str):
        file, unread = options.postprocessing, False
    if file is None:
        return replace(model, cleanup_unread=unread), None
    return replace(model, cleanup=read_postprocessing(trained.bundle, trained.root, file)), file


def _check_stages(trained: TrainedFolder, model: NnUNet, previous: Bundle) -> None:
    first = previous.nnunet
    assert first is not None
    same = [channel.name for channel in first.channels] == [channel.name for channel in model.channels]
    if not same or first.labels.foreground != model.labels.foreground or first.transpose != model.transpose:
        why = f"its first stage, {first.configuration}, has other channels, labels or axes"
        raise InvalidBundle(trained.bundle, _beside(trained, DATASET), why)


def _recipe(model: NnUNet) -> Recipe:
    window = Window(
        roi=model.patch,
        overlap=(round(1 - model.step, 9),) * len(model.patch),
        blend=Blend.GAUSSIAN if model.gaussian else Blend.CONSTANT,
        slice_axis=0,
    )
    return Recipe((), window, FINISH, why_whole(model) or EVENLY)


def _merged(root: Path, parts: Iterable[PartOptions]) -> Bundle:
    """Several models as one, whose labels are numbered anew."""
    made: list[MergedPart] = []
    names: dict[int, str] = {}
    for part in parts:
        model = _bundle(read_trained(root.name, root, part.folder, part.options), part.options)
        numbers = _numbers(root.name, part, model, max(names, default=0))
        twice = [number for number in numbers.values() if number in names]
        if twice or len(set(numbers.values())) < len(numbers):
            raise InvalidBundle(root.name, f"{part.folder}: labels", f"{numbers} gives a label that there is already")
        assert model.nnunet is not None
        names |= {number: dict(model.nnunet.labels.names)[own] for own, number in numbers.items()}
        made.append(MergedPart(model, numbers))
    channels = {part.bundle.image_channels for part in made}
    if len(channels) > 1:
        raise InvalidBundle(
            root.name, "parts", f"expected models of the same channels, found {sorted(channels)} channels"
        )
    modalities = {part.bundle.expects.modality for part in made} - {()}
    if len(modalities) > 1:
        named = " and ".join(sorted(modality for group in modalities for modality in group))
        raise InvalidBundle(root.name, "parts", f"expected models for the same images, found models for {named}")
    first = made[0].bundle
    recipe = next((part.bundle.recipe for part in made if part.bundle.recipe.fallback != EVENLY), first.recipe)
    digest = _digest([part.bundle.digest + repr(sorted(part.numbers.items())) for part in made])
    return replace(
        first,
        recipe=replace(first.recipe, fallback=recipe.fallback),
        digest=digest,
        segments=_segments(names),
        parts=tuple(made),
    )


def _numbers(bundle: str, part: PartOptions, model: Bundle, taken: int) -> dict[int, int]:
    """A part's labels, and the numbers that they have in the result: those given, else the next that are free."""
    assert model.nnunet is not None
    names = model.nnunet.labels.names
    if part.labels is None:
        if taken + len(names) > MOST_LABEL:
            raise InvalidBundle(bundle, f"{part.folder}: labels", f"more than {MOST_LABEL} labels in all")
        return {number: taken + n for n, (number, _) in enumerate(names, 1)}
    known = {name: number for number, name in names} | {str(number): number for number, _ in names}
    for name in part.labels:
        if name not in known:
            why = f"{name!r:.80} is no label of it; there are {', '.join(label for _, label in names):.200}"
            raise InvalidBundle(bundle, f"{part.folder}: labels", why)
    return {known[name]: number for name, number in part.labels.items()}


def _segments(names: Mapping[int, str]) -> tuple[Segment, ...]:
    """Codes are neutral, rather than guessed."""
    colors = palette(max(names))
    return tuple(_segment(number, names[number], TISSUE, colors[number - 1]) for number in sorted(names))


def _segment(number: int, label: str, code: Code, color: tuple[int, int, int]) -> Segment:
    return Segment(number, label, code, code, None, None, color, None)


def _beside(trained: TrainedFolder, file: str) -> str:
    return (Path(trained.folder) / file).as_posix()


def _file_digest(trained: TrainedFolder, file: str) -> str:
    return file_digest(inside(trained.bundle, trained.root, file))


def _digest(facts: Iterable[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
