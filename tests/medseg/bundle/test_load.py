"""Loading a bundle: whole zoo configurations agree with MONAI's own reading; what is wrong is named."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.bundle.bundle import Code, Expects, Postprocess, Side
from medseg.bundle.describe import details, summary, verify
from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import (
    Activation,
    Blend,
    Finish,
    Normalize,
    Order,
    Orient,
    Resample,
    ScaleMinMax,
    ScaleRange,
    Window,
)
from medseg.bundle.transforms import monai_transforms
from medseg.errors import InvalidBundle, NoSuchBundle
from tests.conftest import ROOT
from tests.medseg.bundle import zoo

CPU = torch.device("cpu")
FACTORIES = (
    zoo.spleen_like,
    zoo.swin_like,
    zoo.wholebody_like,
    zoo.prostate_like,
    zoo.segresnet_like,
    zoo.ventricular_like,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {factory: factory(root / factory.__name__) for factory in FACTORIES}


def test_the_recipe_of_spleen(bundles: dict[Any, Path]) -> None:
    bundle = load_bundle(bundles[zoo.spleen_like])
    assert bundle.recipe.steps == (Orient("RAS"), Resample((1.5, 1.5, 2.0)), ScaleRange(-57, 164, 0, 1, clip=True))
    assert bundle.recipe.window == Window((32, 32, 32), (0.5, 0.5, 0.5), batch=4)
    assert bundle.recipe.finish == Finish(Activation.SOFTMAX, None, Order.PROBABILITIES_FIRST, nearest=False)
    assert bundle.recipe.barriers() == ()
    assert (bundle.version, bundle.licence, bundle.expects) == ("0.5.9", "Apache License 2.0", Expects(("CT",)))
    assert [(segment.number, segment.label) for segment in bundle.segments] == [(1, "spleen")]
    assert bundle.segments[0].type == Code("SCT", "85756007", "Tissue")


def test_the_recipe_of_wholebody(bundles: dict[Any, Path]) -> None:
    bundle = load_bundle(bundles[zoo.wholebody_like])
    assert bundle.recipe.steps == (Orient("RAS"), Resample((1.5,) * 3), Normalize(nonzero=True), ScaleMinMax(-1.0, 1.0))
    assert bundle.recipe.window == Window((32,) * 3, (0.25,) * 3, Blend.GAUSSIAN, padding_mode="replicate")
    assert bundle.recipe.finish == Finish(Activation.SOFTMAX, None, Order.LABELS_FIRST, nearest=True)
    assert len(bundle.recipe.barriers()) == 2
    assert len({segment.color for segment in bundle.segments}) == 104


def test_the_recipe_of_prostate(bundles: dict[Any, Path]) -> None:
    """Its configuration interpolates label numbers; nearest is used instead, since 1 is not half of 2."""
    recipe = load_bundle(bundles[zoo.prostate_like]).recipe
    assert recipe.finish == Finish(Activation.NONE, None, Order.LABELS_FIRST, nearest=True, keep_largest=(1, 2))
    assert recipe.steps[2:] == (ScaleMinMax(0.0, 1.0), Normalize())


def test_the_recipe_of_overlapping_segments(bundles: dict[Any, Path]) -> None:
    bundle = load_bundle(bundles[zoo.segresnet_like])
    assert not bundle.recipe.exclusive
    assert bundle.recipe.window.overlap == (0.25, 0.25, 0.5)
    assert bundle.precisions == ("fp32", "bf16")
    assert [(s.number, s.label, s.volume_ml) for s in bundle.segments] == [(1, "Whole", None), (2, "Core", (0.1, 50.0))]


def test_the_recipe_of_slices(bundles: dict[Any, Path]) -> None:
    bundle = load_bundle(bundles[zoo.ventricular_like])
    assert bundle.recipe.window == Window((64, 64), (0.25, 0.25), slice_axis=2)
    assert bundle.spatial_dims == 2


@pytest.mark.parametrize("factory", FACTORIES)
def test_monai_reads_the_same(factory: Any, bundles: dict[Any, Path]) -> None:
    """Network, window and both transform chains as MONAI's ConfigParser makes them from the same files."""
    folder = bundles[factory]
    bundle = load_bundle(folder)
    parser = _monai(folder)
    inferer = parser.get_parsed_content("inferer")
    window = bundle.recipe.window
    assert tuple(inferer.roi_size) == window.roi
    assert tuple(np.broadcast_to(inferer.overlap, len(window.roi))) == window.overlap
    assert (str(inferer.mode), inferer.padding_mode, inferer.sw_batch_size) == (
        f"BlendMode.{window.blend.name}",
        window.padding_mode,
        window.batch,
    ) or inferer.mode == window.blend.value

    network = load_network(bundle, CPU)
    patch = torch.rand(1, 1, *(min(n, 64) for n in window.roi), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = network(patch)
        if factory is not zoo.swin_like:  # its img_size is an argument that MONAI no longer takes
            theirs = parser.get_parsed_content("network_def").eval()
            theirs.load_state_dict(_state(folder))
            assert torch.equal(output, theirs(patch))
    assert output.shape == (1, bundle.out_channels, *patch.shape[2:])


@pytest.mark.parametrize("factory", [f for f in FACTORIES if f is not zoo.prostate_like])
def test_monai_transforms_do_what_the_configuration_says(factory: Any, bundles: dict[Any, Path]) -> None:
    """The fallback's chains against MONAI's own, on an oblique image; prostate's needs scikit-image."""
    bundle = load_bundle(bundles[factory])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = _monai(bundles[factory])
        theirs = [parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing")]
        for composed in theirs:
            composed.transforms = [step for step in composed.transforms if not _reads_or_writes(step)]
        ours = monai_transforms(bundle, CPU)
        results = [_through(before, after, bundle.out_channels) for before, after in (ours, theirs)]
    for name in ("image", "pred"):
        assert torch.equal(results[0][name], results[1][name])
    assert results[0]["pred"].shape[1:] == (20, 24, 16)


def _through(before: Any, after: Any, channels: int) -> dict[str, Any]:
    from monai.data import MetaTensor

    generator = torch.Generator().manual_seed(0)
    affine = torch.tensor([[2.0, 0.3, 0, 5], [-0.3, 2.1, 0, 7], [0, 0, 3.0, -9], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(torch.rand(1, 20, 24, 16, generator=generator) * 400 - 100, affine=affine)
    data = before({"image": image})
    scores = torch.rand(channels, *data["image"].shape[1:], generator=generator)
    data["pred"] = MetaTensor(scores, affine=data["image"].affine)
    done: dict[str, Any] = after(data)
    return done


def _reads_or_writes(step: Any) -> bool:
    return type(step).__name__ in ("LoadImaged", "SaveImaged", "EnsureChannelFirstd")


def _monai(folder: Path) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / "configs/inference.json"))
    parser["preprocessing"]["transforms"][0].pop("reader", None)  # ITK's is not installed
    return parser


def _state(folder: Path) -> Any:
    from safetensors.torch import load_file

    file = folder / "models/model.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / "models/model.pt", weights_only=True)


def test_the_shipped_bundles_load() -> None:
    for folder in (ROOT / "bundles").iterdir():
        if (folder / "configs").is_dir():
            bundle = load_bundle(folder, trained=False)
            assert bundle.recipe.fallback is None
            assert bundle.licence
            assert all(segment.type.meaning != segment.type.value for segment in bundle.segments)


def test_the_digest_is_of_configuration_and_weights(tmp_path: Path) -> None:
    folder = zoo.spleen_like(tmp_path / "a")
    digest = load_bundle(folder).digest
    assert load_bundle(shutil.copytree(folder, tmp_path / "b")).digest == digest
    (folder / "docs/README.md").write_text("a model card")
    assert load_bundle(folder).digest == digest
    zoo.rewrite(folder, lambda content: content["inferer"].update(overlap=0.25))
    changed = load_bundle(folder).digest
    zoo.spleen_like(tmp_path / "c", seed=1)
    assert len({digest, changed, load_bundle(tmp_path / "c").digest}) == 3


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundle, match="no bundle"):
        load_bundle(tmp_path / "none")
    with pytest.raises(InvalidBundle, match=r"configs/metadata\.json"):
        load_bundle(tmp_path)
    folder = zoo.spleen_like(tmp_path / "b")
    (folder / "models/model.pt").unlink()
    with pytest.raises(InvalidBundle, match="no weights"):
        load_bundle(folder)
    assert load_bundle(folder, trained=False).name == "b"
    (folder / "configs/inference.json").rename(folder / "configs/inference.yaml")
    with pytest.raises(InvalidBundle, match="YAML"):
        load_bundle(folder)


def _medseg(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(medseg=keys)


SEGMENT = {"number": 1, "label": "a"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (_medseg(defualt=True), "medseg::defualt"),
        (_medseg(default="yes"), "medseg::default"),
        (_medseg(default=1), "medseg::default"),
        (_medseg(precisions=["fp8"]), "medseg::precisions"),
        (_medseg(lesions=256), "medseg::lesions"),
        (_medseg(expects={"modalities": ["CT"]}), "medseg::expects::modalities"),
        (_medseg(expects={"fov_mm": [[1, 2]]}), "medseg::expects::fov_mm"),
        (_medseg(expects={"fov_mm": [[1, 2], [3, 1], [1, 2]]}), "medseg::expects::fov_mm"),
        (_medseg(expects={"min_slices": 2.5}), "medseg::expects::min_slices"),
        (_medseg(expects=[]), "medseg::expects"),
        (_medseg(segments={}), "medseg::segments"),
        (_medseg(segments=[{"label": "a"}]), "medseg::segments::0::number"),
        (_medseg(segments=[SEGMENT | {"number": 2}]), "medseg::segments::0::number"),
        (_medseg(segments=[SEGMENT | {"color": [1, 2]}]), "medseg::segments::0::color"),
        (_medseg(segments=[SEGMENT | {"color": [1, 2, 256]}]), "medseg::segments::0::color"),
        (_medseg(segments=[SEGMENT | {"type": "Liver"}]), "medseg::segments::0::type"),
        (_medseg(segments=[SEGMENT | {"type": "SCT: 1"}]), "medseg::segments::0::type"),
        (_medseg(segments=[SEGMENT | {"volume_ml": [3, 1]}]), "medseg::segments::0::volume_ml"),
        (_medseg(segments=[SEGMENT | {"one_piece": 1}]), "medseg::segments::0::one_piece"),
        (_medseg(segments=[SEGMENT | {"beside_middle": True}]), "medseg::segments::0::beside_middle"),
        (_medseg(segments=[SEGMENT | {"colour": [1, 2, 3]}]), "medseg::segments::0::colour"),
        (_medseg(segments=[SEGMENT, SEGMENT]), "medseg::segments"),
        (_medseg(postprocess={"keep_largest": [2]}), "medseg::postprocess::keep_largest"),
        (_medseg(postprocess={"fill_holes": 1}), "medseg::postprocess::fill_holes"),
        (_medseg(tta="mirror"), "medseg::tta"),
        (_medseg(tta=[3]), "medseg::tta"),
        (_medseg(tta=[0, 0]), "medseg::tta"),
        (_medseg(tta=True), "medseg::tta"),
        (_medseg(members=[1]), "medseg::members"),
        (lambda content: content.update(version=3), "version"),
        (lambda content: content.update(medseg=[]), "medseg"),
    ],
)
def test_what_is_wrong_in_the_metadata_is_named(
    change: Callable[[dict[str, Any]], object], key: str, tmp_path: Path
) -> None:
    folder = zoo.rewrite(zoo.spleen_like(tmp_path / "b"), change, "metadata.json")
    with pytest.raises(InvalidBundle) as error:
        load_bundle(folder)
    assert error.value.key == f"configs/metadata.json::{key}"


def test_the_medseg_key(tmp_path: Path) -> None:
    own = json.loads(
        """{"default": true, "research_only": false, "precisions": ["bf16"],
        "expects": {"modality": ["mr"], "body_part": ["Head"], "series_description": "*T1*",
                    "fov_mm": [[20, 80], [30, 90], [20, 80]], "values": null, "min_slices": 16},
        "segments": [{"number": 1, "label": "Liver", "category": "SCT:123037004", "type": "SCT:10200004",
                      "laterality": "SCT:24028007", "region": "99X:A.1:Of our own", "volume_ml": [0.2, 6],
                      "one_piece": true, "beside_middle": true}],
        "postprocess": {"keep_largest": [1], "fill_holes": true, "min_volume_ml": 0.05}, "tta": null, "members": [],
        "lesions": 5}"""
    )
    bundle = load_bundle(
        zoo.rewrite(zoo.spleen_like(tmp_path / "b"), lambda content: content.update(medseg=own), "metadata.json")
    )
    assert (bundle.default, bundle.research_only, bundle.precisions) == (True, False, ("fp32", "bf16"))
    assert bundle.expects == Expects(("MR",), ("HEAD",), "*T1*", ((20, 80), (30, 90), (20, 80)), None, 16)
    (segment,) = bundle.segments
    assert segment.type == Code("SCT", "10200004", "Liver")
    assert segment.laterality == Code("SCT", "24028007", "Right")
    assert segment.region == Code("99X", "A.1", "Of our own")
    assert (segment.side, segment.one_piece, segment.beside_middle) == (Side.RIGHT, True, True)
    assert bundle.postprocess == Postprocess((1,), True, 0.05)
    assert bundle.lesions == 5


@pytest.mark.parametrize(
    ("tta", "flips"), [(None, ()), ("none", ()), ("flips", (0, 1, 2)), ([0], (0,)), ([2, 0], (2, 0)), ([], ())]
)
def test_test_time_flips(tta: object, flips: tuple[int, ...], tmp_path: Path) -> None:
    assert load_bundle(zoo.rewrite(zoo.spleen_like(tmp_path / "b"), _medseg(tta=tta), "metadata.json")).flips == flips


def test_members_belong_to_the_bundle(tmp_path: Path) -> None:
    """Their bytes are part of its digest, and they lie in its folder."""
    folder = zoo.rewrite(zoo.spleen_like(tmp_path / "b"), _medseg(members=["models/second.pt"]), "metadata.json")
    second = folder / "models" / "second.pt"
    shutil.copyfile(folder / "models/model.pt", second)
    before = load_bundle(folder)
    assert before.members == (second.resolve(),)
    second.write_bytes(second.read_bytes() + b"\0")
    assert load_bundle(folder).digest != before.digest
    (tmp_path / "outside.pt").touch()
    for elsewhere in ("models/third.pt", "../outside.pt"):
        zoo.rewrite(folder, _medseg(members=[elsewhere]), "metadata.json")
        with pytest.raises(InvalidBundle):
            load_bundle(folder)


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    """JSON readers disagree about which one counts, so a person may have read the other."""
    folder = zoo.spleen_like(tmp_path / "b")
    file = folder / "configs/inference.json"
    file.write_text(file.read_text().replace('"bundle_root"', '"device": 1, "bundle_root"', 1))
    with pytest.raises(InvalidBundle, match="'device' appears twice"):
        load_bundle(folder)


def test_references_of_every_form(tmp_path: Path) -> None:
    """`@a::b`, `@a#b`, `@::sibling`, `%copy` and `%file.json::id` mean what they mean to MONAI."""

    def change(content: dict[str, Any]) -> None:
        content["sizes"] = {"window": [16, "@::0", "@sizes#window#0"], "batch": "@##deep::batch"}
        content["deep"] = {"batch": "$len_ * 2".replace("len_", "@sizes::window::0 // 8")}
        content["inferer"] |= {"roi_size": "%sizes::window", "sw_batch_size": "@sizes::batch"}
        content["inferer"]["overlap"] = "%configs/other.json::overlap"

    folder = zoo.rewrite(zoo.spleen_like(tmp_path / "b"), change)
    (folder / "configs/other.json").write_text('{"overlap": [0.25, "$@sizes::window::0 / 64", 0.5]}')
    window = load_bundle(folder).recipe.window
    assert (window.roi, window.batch, window.overlap) == ((16, 16, 16), 4, (0.25, 0.25, 0.5))


def test_disabled_components_are_left_out(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["flag"] = True
        content["preprocessing"]["transforms"][3]["_disabled_"] = "$@flag and 1 < 2"
        content["preprocessing"]["transforms"][2]["_disabled_"] = False

    bundle = load_bundle(zoo.rewrite(zoo.spleen_like(tmp_path / "b"), change))
    assert [type(step) for step in bundle.recipe.steps] == [Orient, ScaleRange]


def test_what_describes_a_bundle_is_json(bundles: dict[Any, Path]) -> None:
    for factory in FACTORIES:
        bundle = load_bundle(bundles[factory])
        told = json.loads(json.dumps(details(bundle)))
        assert told["streamable"] is (bundle.recipe.barriers() == ())
        assert summary(bundle).items() <= details(bundle).items()


def test_verify_runs_the_network(bundles: dict[Any, Path], tmp_path: Path) -> None:
    assert verify(load_bundle(bundles[zoo.spleen_like]))["verified"] is True
    folder = zoo.rewrite(
        zoo.spleen_like(tmp_path / "b"), lambda content: content["inferer"].update(roi_size=[30, 31, 32])
    )
    with pytest.raises(InvalidBundle, match="does not run on a window"):
        verify(load_bundle(folder))
