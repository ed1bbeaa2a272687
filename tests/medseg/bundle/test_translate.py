"""From transform chains to recipes: every known step, what falls back and why, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle.expression import Dtype
from medseg.bundle.recipe import (
    Activation,
    Blend,
    ChannelWise,
    Finish,
    Interpolation,
    Normalize,
    Order,
    Orient,
    Padding,
    Pointwise,
    Recipe,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    Window,
)
from medseg.bundle.safe_config import SafeConfig
from medseg.bundle.translate import recipe_from_config
from medseg.errors import InvalidBundle

INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
WINDOW = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
STACKS = "medseg.bundle.inferers.SliceStackInferer"
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}


def recipe(
    before: list[dict[str, Any]] | None = None,
    after: list[dict[str, Any]] | None = None,
    inferer: dict[str, Any] = WINDOW,
    *,
    dims: int = 3,
    channels: tuple[int, int] = (1, 3),
) -> tuple[Recipe, tuple[int, ...]]:
    content = {
        "preprocessing": {"_target_": "Compose", "transforms": before or []},
        "postprocessing": {"_target_": "Compose", "transforms": after or []},
        "inferer": inferer,
    }
    config = SafeConfig("b", Path(), content)
    return recipe_from_config(
        "b",
        preprocessing=config.get("preprocessing"),
        inferer=config.get("inferer"),
        postprocessing=config.get("postprocessing"),
        spatial_dims=dims,
        in_channels=channels[0],
        out_channels=channels[1],
    )


def on_image(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


@pytest.mark.parametrize(
    ("transform", "step"),
    [
        (on_image("Orientationd", axcodes="LPS"), Orient("LPS")),
        (on_image("monai.transforms.OrientationD", axcodes="SAR"), Orient("SAR")),
        (on_image("OrientationDict", as_closest_canonical=True), Orient("RAS")),
        (on_image("Spacingd", pixdim=2), Resample((2.0, 2.0, 2.0))),
        (on_image("Spacingd", pixdim=[2, 1]), Resample((2.0, 1.0, 1.0))),  # MONAI repeats the last one
        (on_image("Spacingd", pixdim=[1, 1, -1]), Resample((1.0, 1.0, -1.0))),
        (
            on_image("Spacingd", pixdim=[1, 1, 1], mode="nearest", padding_mode="zeros", align_corners=True),
            Resample((1.0, 1.0, 1.0), Interpolation.NEAREST, Padding.ZEROS, align_corners=True),
        ),
        (
            {"_target_": "Spacingd", "keys": ["label", "image"], "pixdim": [1.0], "mode": ["nearest", "bilinear"]},
            Resample((1.0, 1.0, 1.0)),
        ),
        (on_image("ScaleIntensityRanged", a_min=0, a_max=9), ScaleRange(0, 9, None, None, clip=False)),
        (on_image("ScaleIntensityd"), ScaleMinMax(0.0, 1.0)),
        (on_image("ScaleIntensityd", minv=None, maxv=None, factor=0.5), ScaleMinMax(None, None, 0.5)),
        (on_image("NormalizeIntensityd", channel_wise=True, nonzero=True), Normalize(nonzero=True)),
        (on_image("NormalizeIntensityd", subtrahend=[3], divisor=[2], channel_wise=True), Normalize(3.0, 2.0)),
        (
            on_image("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True, relative=True),
            ScalePercentiles(1, 99, 0, 1, clip=True, relative=True),
        ),
    ],
)
def test_known_steps(transform: dict[str, Any], step: Any) -> None:
    found, _ = recipe([transform])
    assert (found.steps, found.fallback) == ((step,), None)


@pytest.mark.parametrize(
    "transform",
    [
        on_image("LoadImaged", reader="ITKReader"),
        on_image("EnsureChannelFirstd"),
        on_image("EnsureTyped", device="@device"),
        on_image("ToTensord", dtype="$torch.float32"),
        on_image("CastToTyped", dtype="$np.float32"),
        on_image("SelectItemsd"),
        on_image("ScaleIntensityd", minv=None, maxv=None),
        {"_target_": "CropForegroundd", "keys": "label", "source_key": "label"},
    ],
)
def test_steps_without_effect(transform: dict[str, Any]) -> None:
    found, _ = recipe([transform])
    assert (found.steps, found.fallback) == ((), None)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (on_image("CropForegroundd", source_key="image"), "CropForegroundd"),
        (on_image("Resized", spatial_size=[1, 2, 3]), "Resized"),
        (on_image("SpatialPadd", spatial_size=96), "SpatialPadd"),
        (on_image("Spacingd", pixdim=1, mode=3), "mode=3"),
        (on_image("Spacingd", pixdim=1, diagonal=True), "diagonal"),
        (on_image("Spacingd", pixdim=1, min_pixdim=0.5), "min_pixdim"),
        (on_image("Orientationd", axcodes="RAS", labels=[["R", "L"], ["A", "P"], ["I", "S"]]), "labels"),
        (on_image("CastToTyped", dtype="$numpy.int16"), "int16"),
        (on_image("ScaleIntensityd", minv=0, maxv=None), "one end"),
        (on_image("NormalizeIntensityd", subtrahend=[1, 2]), "subtrahend"),
        ({"_target_": "Compose", "transforms": [on_image("Zoomd", zoom=2)]}, "Zoomd"),
    ],
)
def test_steps_that_need_monai(transform: dict[str, Any], reason: str) -> None:
    found, _ = recipe([transform])
    assert found.fallback is not None
    assert reason in found.fallback
    assert found.barriers()[0] == found.fallback


@pytest.mark.parametrize(
    ("transform", "each"),
    [
        (on_image("NormalizeIntensityd", nonzero=True), [Normalize(nonzero=True)] * 2),
        (on_image("NormalizeIntensityd", subtrahend=[0, -20], divisor=[5, 80]), [Normalize(0, 5), Normalize(-20, 80)]),
        (
            on_image("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1),
            [ScalePercentiles(1, 99, 0, 1, False)] * 2,
        ),
        (on_image("ScaleIntensityd", minv=0, maxv=2), [ScaleMinMax(0, 2)] * 2),
    ],
)
def test_each_channel_on_its_own(transform: dict[str, Any], each: list[Pointwise]) -> None:
    found, _ = recipe([transform | {"channel_wise": True}], channels=(2, 3))
    assert found.steps == (ChannelWise(tuple(each)),)
    assert found.fallback is None
    assert bool(found.barriers()) is ("subtrahend" not in transform)


@pytest.mark.parametrize("given", [{"subtrahend": [1]}, {"divisor": [1, 2, 3]}, {"subtrahend": 1}])
def test_numbers_for_each_channel_are_as_many(given: dict[str, Any]) -> None:
    """As MONAI, which refuses them when it meets the volume."""
    found, _ = recipe([on_image("NormalizeIntensityd", channel_wise=True, **given)], channels=(2, 3))
    assert found.fallback is not None and next(iter(given)) in found.fallback


@pytest.mark.parametrize(
    ("transform", "key"),
    [
        (on_image("Orientationd", axcodes="RAX"), "axcodes"),
        (on_image("Orientationd", axcodes="RLS"), "axcodes"),
        (on_image("Spacingd"), "pixdim"),
        (on_image("Spacingd", pixdim=["a"]), "pixdim"),
        (on_image("Spacingd", pixdim=1, modes="x"), "modes"),
        (on_image("ScaleIntensityRanged", a_min=1, a_max=1), "a_max"),
        (on_image("ScaleIntensityRanged", a_min="1", a_max=2), "a_min"),
        (on_image("ScaleIntensityRangePercentilesd", lower=1, upper=101, b_min=0, b_max=1), "upper"),
        ({"_target_": "Spacingd", "keys": 3, "pixdim": 1}, "keys"),
        ("Spacingd", ""),
    ],
)
def test_steps_that_make_no_sense(transform: Any, key: str) -> None:
    with pytest.raises(InvalidBundle) as error:
        recipe([transform])
    assert error.value.key == f"preprocessing::transforms::0{'::' if key else ''}{key}"


@pytest.mark.parametrize(
    ("after", "finish"),
    [
        (
            [SOFTMAX, INVERT | {"nearest_interp": False}, ARGMAX],
            Finish(Activation.SOFTMAX, None, Order.PROBABILITIES_FIRST, nearest=False),
        ),
        # MONAI's default interpolation of an inversion is nearest
        ([SOFTMAX, INVERT, ARGMAX], Finish(Activation.SOFTMAX, None, Order.PROBABILITIES_FIRST, nearest=True)),
        ([SOFTMAX, ARGMAX, INVERT], Finish(Activation.SOFTMAX, None, Order.LABELS_FIRST, nearest=True)),
        (
            [INVERT | {"nearest_interp": False}, ARGMAX],
            Finish(Activation.NONE, None, Order.PROBABILITIES_FIRST, nearest=False),
        ),
        (
            [ARGMAX, LARGEST, INVERT],
            Finish(Activation.NONE, None, Order.LABELS_FIRST, nearest=True, keep_largest=(1, 2)),
        ),
        (
            [
                {"_target_": "Activationsd", "keys": ["pred"], "sigmoid": [True]},
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.4},
                INVERT,
            ],
            Finish(Activation.SIGMOID, 0.4, Order.LABELS_FIRST, nearest=True),
        ),
        ([SOFTMAX, ARGMAX], Finish(Activation.SOFTMAX, None, Order.PROBABILITIES_FIRST, nearest=False)),
        ([], Finish(Activation.NONE, None, Order.PROBABILITIES_FIRST, nearest=False)),
    ],
)
def test_from_output_to_labels(after: list[dict[str, Any]], finish: Finish) -> None:
    found, keep = recipe(after=after)
    assert (found.finish, found.fallback, keep) == (finish, None, ())


def test_one_output_channel_is_a_sigmoid() -> None:
    found, _ = recipe(channels=(1, 1))
    assert (found.finish.activation, found.finish.threshold) == (Activation.SIGMOID, 0.5)
    with pytest.raises(InvalidBundle, match="one output channel"):
        recipe(after=[ARGMAX], channels=(1, 1))


def test_components_kept_on_the_source_grid_are_told_apart() -> None:
    found, keep = recipe(after=[SOFTMAX, INVERT, ARGMAX, LARGEST | {"applied_labels": 2}])
    assert (found.finish.keep_largest, keep, found.fallback) == ((), (2,), None)


@pytest.mark.parametrize(
    "after",
    [
        [SOFTMAX, INVERT, ARGMAX, {"_target_": "FillHolesd", "keys": "pred"}],
        [SOFTMAX, INVERT, ARGMAX | {"to_onehot": 3}],
        [SOFTMAX, ARGMAX, LARGEST | {"independent": False}, INVERT],
        [SOFTMAX, LARGEST, INVERT, ARGMAX],
        [INVERT, SOFTMAX, ARGMAX],
        [SOFTMAX, INVERT, ARGMAX, ARGMAX | {"argmax": False, "threshold": 1}],
    ],
)
def test_chains_that_need_monai(after: list[dict[str, Any]]) -> None:
    assert recipe(after=after)[0].fallback is not None


@pytest.mark.parametrize(
    ("inferer", "dims", "window"),
    [
        ({"_target_": "SlidingWindowInferer", "roi_size": 32}, 3, Window((32, 32, 32), (0.25, 0.25, 0.25))),
        ({"_target_": "SlidingWindowInferer", "roi_size": [32, -1]}, 2, Window((32, -1), (0.25, 0.25))),
        ({"_target_": "SliceInferer", "roi_size": [8, 9]}, 2, Window((8, 9), (0.25, 0.25), slice_axis=0)),
        (
            {"_target_": STACKS, "roi_size": [8, 9], "slices": 1, "spatial_dim": 2, "overlap": 0.5},
            2,
            Window((8, 9), (0.5, 0.5)),
        ),
        ({"_target_": "SimpleInferer"}, 3, Window((-1, -1, -1), (0.0, 0.0, 0.0))),
        (
            WINDOW
            | {"mode": "gaussian", "sigma_scale": [0.1, 0.1, 0.1], "cval": -1, "cpu_thresh": 9, "progress": True},
            3,
            Window((16, 16, 16), (0.25, 0.25, 0.25), Blend.GAUSSIAN, 0.1, cval=-1.0),
        ),
    ],
)
def test_windows(inferer: dict[str, Any], dims: int, window: Window) -> None:
    assert recipe(inferer=inferer, dims=dims)[0].window == window


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"roi_size": [16, 16]}, "roi_size"),
        ({"roi_size": [16, 16, 1.5]}, "roi_size"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": [0.5, 0.5]}, "overlap"),
        ({"mode": "max"}, "mode"),
        ({"padding_mode": "mirror"}, "padding_mode"),
        ({"sw_batch_size": 0}, "sw_batch_size"),
        ({"sigma_scale": [0.1, 0.2, 0.1]}, "sigma_scale"),
        ({"with_coord": True}, "with_coord"),
        ({"roi": 3}, "roi"),
    ],
)
def test_windows_that_make_no_sense(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidBundle) as error:
        recipe(inferer=WINDOW | change)
    assert error.value.key == f"inferer::{key}"


@pytest.mark.parametrize("slices", [0, 2, 33, 2.5, None])
def test_slices_at_once_are_an_odd_number(slices: object) -> None:
    with pytest.raises(InvalidBundle) as error:
        recipe(inferer={"_target_": STACKS, "roi_size": [8, 9], "slices": slices}, dims=2)
    assert error.value.key == "inferer::slices"


def test_slices_at_once_are_channels_of_the_network() -> None:
    stacks = {"_target_": STACKS, "roi_size": [8, 9], "slices": 3}
    scaled = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    found = recipe([scaled], inferer=stacks, dims=2, channels=(3, 3))[0]
    assert found.window.slices == 3
    assert found.fallback is None, "a volume of one channel"
    assert recipe([scaled], inferer=stacks, dims=2, channels=(6, 3))[0].steps == (ChannelWise((Normalize(),) * 2),)
    with pytest.raises(InvalidBundle, match="multiple of the inferer's 3 slices"):
        recipe(inferer=stacks, dims=2, channels=(4, 3))


def test_a_data_type_has_a_name() -> None:
    assert SafeConfig("b", Path(), {"a": "$np.int32"}).get("a") == Dtype("int32")


# --- images under keys of their own ------------------------------------------------------------------------------

JOIN = {"_target_": "ConcatItemsd", "keys": ["ct", "pet"], "name": "image"}


def on(keys: Any, target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": keys, **arguments}


def test_images_that_are_joined_are_channels() -> None:
    """Each as its key was prepared; what needs a whole volume stands side by side."""
    found, _ = recipe(
        [
            on(["ct", "pet"], "LoadImaged"),
            on(["ct", "pet"], "Orientationd", axcodes="RAS"),
            on("ct", "ScaleIntensityRanged", a_min=0, a_max=9),
            on("pet", "Spacingd", pixdim=2),
            on("ct", "Spacingd", pixdim=2),
            on("ct", "ScaleIntensityRanged", a_min=0, a_max=2),
            on("ct", "NormalizeIntensityd"),
            on(["pet"], "ScaleIntensityd"),
            JOIN,
            on(["ct", "pet"], "DeleteItemsd"),
            on_image("ScaleIntensityRanged", a_min=0, a_max=1),
        ],
        channels=(2, 3),
    )
    scale = ScaleRange(0, 9, None, None, clip=False)
    assert found.steps == (
        Orient("RAS"),
        ChannelWise((scale, None)),
        Resample((2.0, 2.0, 2.0)),
        ChannelWise((replace(scale, a_max=2), None)),
        ChannelWise((Normalize(), ScaleMinMax())),
        replace(scale, a_max=1),
    )
    assert (found.keys, found.fallback) == (("ct", "pet"), None)


def test_what_is_done_to_all_images_alike_is_one_step() -> None:
    step = on(["ct", "pet"], "ScaleIntensityRanged", a_min=0, a_max=9)
    assert recipe([step, JOIN], channels=(2, 3))[0].steps == (ScaleRange(0, 9, None, None, clip=False),)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([on("ct", "Spacingd", pixdim=2)], "different grids (ct, pet)"),
        ([on("pet", "ResampleToMatchd", key_dst="ct")], "ResampleToMatchd"),
        ([on(["ct", "pet"], "CropForegroundd", source_key="ct")], "CropForegroundd"),
    ],
)
def test_images_that_only_monai_prepares(steps: list[dict[str, Any]], why: str) -> None:
    found, _ = recipe([*steps, JOIN], channels=(2, 3))
    assert found.fallback is not None and why in found.fallback
    assert found.keys == ("ct", "pet")


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([JOIN | {"dim": 1}], "expected 0, the channels, found 1"),
        ([JOIN | {"keys": ["ct", "pet", "mr"]}], "joins ct, pet, mr: expected an image for each of the network's 2"),
        ([JOIN | {"keys": ["ct", "ct"]}], "joins ct, ct"),
        ([JOIN, JOIN], "again: expected it once"),
        ([on(["ct", "pet"], "LoadImaged"), JOIN | {"name": "inputs"}], "loads ct, pet: expected 'image', or"),
    ],
)
def test_a_join_that_is_not_known_is_refused(steps: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(InvalidBundle, match=re.escape(why)):
        recipe(steps, channels=(2, 3))
