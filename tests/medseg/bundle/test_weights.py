"""A bundle's weights are those that its configuration loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medseg.bundle.describe import details
from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.errors import InvalidBundle
from tests.medseg.bundle import zoo

CPU = torch.device("cpu")
PATHS = {
    "written out": "models/other.pt",
    "from the root": "$@bundle_root + '/models/other.pt'",
    "joined": "$os.path.join(@bundle_root, 'models', 'other.pt')",
    "by a path": "$pathlib.Path(@bundle_root) / 'models' / 'other.pt'",
    "as a string": "$str(Path(@bundle_root) / 'models' / @modelname)",
    "formatted": "$f'{@bundle_root}/models/{@modelname}'",
    "by a key": "@ckpt_path",
    "by a key's key": "$@ckpt_dir + '/' + @modelname",
    "by a choice": "$@bundle_root + '/models/' + ('model.pt' if @highres else 'other.pt')",
    "by a table": "$@bundle_root + '/models/' + {'fine': 'model.pt', 'coarse': 'other.pt'}[@resolution]",
    "if it is there": "$@ckpt_path if os.path.exists(@ckpt_path) else @bundle_root + '/models/model.pt'",
}
KEYS = {
    "highres": False,
    "resolution": "coarse",
    "modelname": "other.pt",
    "ckpt_dir": "$@bundle_root + '/models'",
    "ckpt_path": "$@ckpt_dir + '/other.pt'",
    "load_pretrain": True,
}
EXPRESSIONS = {
    "plain": "$@network_def.load_state_dict(torch.load(@ckpt_path))",
    "with arguments": "$@network.load_state_dict(torch.load(@ckpt_path, map_location=@device), strict=True)",
    "an entry": "$@network.load_state_dict(torch.load(@ckpt_path)['model'])",
    "got": "$@network.load_state_dict(torch.load(@ckpt_path).get('model'))",
    "by a key": "$@network_def.load_state_dict(@checkpoint)",
    "an entry by a key": "$@network_def.load_state_dict(@checkpoint['model'])",
    "copied": "$monai.networks.utils.copy_model_state(@network_def, torch.load(@ckpt_path))",
    "where wanted": "$@network_def.load_state_dict(torch.load(@ckpt_path)) if @load_pretrain else None",
    "the other branch": "$None if not @load_pretrain else @network.load_state_dict(torch.load(@ckpt_path))",
}


def weights(seed: int, folder: Path) -> dict[str, torch.Tensor]:
    return zoo.random_state(json.loads((folder / "configs/inference.json").read_text())["network_def"], seed)


def two_files(folder: Path, **changes: Any) -> Path:
    """A bundle with models/model.pt and models/other.pt, whose loader names the usual one unless it is changed."""
    zoo.spleen_like(folder, seed=1)
    torch.save({"model": weights(2, folder), "ema": weights(3, folder)}, folder / "models/other.pt")
    return zoo.rewrite(folder, lambda config: config.update(KEYS | changes))


def seed_of(folder: Path) -> int:
    """Which of the seeds the network in fact has the weights of."""
    found = load_network(load_bundle(folder), CPU).state_dict()
    return next(
        seed
        for seed in (1, 2, 3)
        if all(torch.equal(found[key], tensor) for key, tensor in weights(seed, folder).items())
    )


def loader(path: str, **changes: Any) -> dict[str, Any]:
    return {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "@network"}} | changes


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_loaders_path(path, tmp_path):
    folder = two_files(tmp_path / "b", checkpointloader=loader(path))
    bundle = load_bundle(folder)
    assert bundle.weights == folder / "models/other.pt"
    assert details(bundle)["weights"] == "models/other.pt"
    assert seed_of(folder) == 2


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_that_loads(expression, tmp_path):
    folder = two_files(tmp_path / "b", initialize=[expression], checkpoint="$torch.load(@ckpt_path)")
    assert seed_of(folder) == 2


def test_a_handler_of_the_evaluator(tmp_path):
    folder = two_files(tmp_path / "b", handlers=[loader("@ckpt_path")], initialize=[])
    assert seed_of(folder) == 2


def test_each_setting_has_its_own_weights(tmp_path):
    """As wholeBody_ct_segmentation: "highres" chooses spacing and weights together."""
    folder = zoo.wholebody_like(tmp_path / "b", classes=3)
    zoo.rewrite(folder, lambda c: c["checkpointloader"].update(load_path="$@bundle_root + '/models/' + @modelname"))
    torch.save(weights(2, folder), folder / "models/model_lowres.pt")
    fine = load_bundle(folder)
    zoo.rewrite(folder, lambda c: c["displayable_configs"].update(highres=False))
    coarse = load_bundle(folder)
    for bundle, file, spacing, seed in ((fine, "model.pt", 1.5, 0), (coarse, "model_lowres.pt", 3.0, 2)):
        assert bundle.weights.name == file
        assert bundle.recipe.steps[1].spacing_mm == (spacing,) * 3  # type: ignore[union-attr]
        expected, found = weights(seed, folder), load_network(bundle, CPU).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert fine.digest != coarse.digest


def test_the_entry_that_is_named(tmp_path):
    folder = two_files(tmp_path / "b", checkpointloader=loader("@ckpt_path", load_dict={"ema": "@network_def"}))
    assert seed_of(folder) == 3
    zoo.rewrite(folder, lambda c: c["checkpointloader"].update(load_dict={"net": "@network"}))
    assert seed_of(folder) == 2  # no such entry: as MONAI the whole, in which "model" is the usual one


def test_loaders_of_other_networks_do_not_count(tmp_path):
    other = {"_target_": "UNet", "spatial_dims": 3}
    for change in (
        {"handlers": [loader("@ckpt_path", load_dict={"model": "@other_def"})], "other_def": other},
        {"spare": loader("@ckpt_path")},  # the one that runs counts
        {"handlers": [loader("@ckpt_path", _disabled_=True)]},
        {"initialize": ["$@checkpointloader(@evaluator)", "$@other(@evaluator) if @highres else None"]}
        | {"other": loader("@ckpt_path")},
    ):
        assert seed_of(two_files(tmp_path / str(len(list(tmp_path.iterdir()))), **change)) == 1


def test_without_a_loader_the_usual_names_hold(tmp_path):
    folder = two_files(tmp_path / "b", initialize=[])
    zoo.rewrite(folder, lambda config: config.pop("checkpointloader"))
    assert seed_of(folder) == 1


def test_a_loader_that_nothing_runs_still_names_the_weights(tmp_path):
    folder = two_files(tmp_path / "b", initialize=[], checkpointloader=loader("@ckpt_path"))
    assert seed_of(folder) == 2


def test_safetensors_stand_for_a_file_of_the_same_stem_alone(tmp_path):
    folder = two_files(tmp_path / "b", checkpointloader=loader("@ckpt_path"))
    state = weights(2, folder)
    save_file(state, folder / "models/other.safetensors")
    save_file(weights(1, folder), folder / "models/third.safetensors")
    assert load_bundle(folder).weights.name == "other.safetensors"
    assert seed_of(folder) == 2
    (folder / "models/other.pt").unlink()
    zoo.rewrite(folder, lambda c: c["checkpointloader"].update(_disabled_="$not os.path.exists(@ckpt_path)"))
    assert seed_of(folder) == 2
    (folder / "models/other.safetensors").unlink()
    with pytest.raises(InvalidBundle, match=r"models/other.pt: no weights: checkpointloader::load_path"):
        load_bundle(folder)


@pytest.mark.parametrize("named", [True, False])
def test_two_files_of_one_stem_that_differ_are_refused(named, tmp_path):
    folder = two_files(tmp_path / "b")
    if not named:
        zoo.rewrite(folder, lambda config: (config.pop("checkpointloader"), config.update(initialize=[])))
    save_file(weights(3, folder), folder / "models/model.safetensors")
    with pytest.raises(InvalidBundle, match=r"model\.safetensors.* other weights than models/model\.pt"):
        load_network(load_bundle(folder), CPU)


REFUSED = {
    "two files": ({"handlers": [loader("@ckpt_path")]}, r"other\.pt .*handlers::0.*leave the one"),
    "missing": ({"checkpointloader": loader("models/none.pt")}, r"models/none\.pt: no weights"),
    "outside": ({"checkpointloader": loader("/opt/models/model.pt")}, "leads out"),
    "above": ({"checkpointloader": loader("$@bundle_root + '/../model.pt'")}, "leads out"),
    "a search": ({"checkpointloader": loader("$sorted(glob.glob('models/*'))[-1]")}, "checkpointloader::load_path"),
    "the environment": ({"checkpointloader": loader("$os.environ['CKPT']")}, "checkpointloader::load_path"),
    "switched off": (
        {"initialize": ["$@checkpointloader(@evaluator) if @load_pretrain else None"], "load_pretrain": False},
        "nothing is loaded",
    ),
    "a script": ({"initialize": ["$scripts.load_weights(@network_def, 'models/other.pt')"]}, "not read"),
    "TorchScript": ({"checkpointloader": loader("models/model.ts")}, "TorchScript"),
}


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(changes, why, tmp_path):
    with pytest.raises(InvalidBundle, match=why):
        load_bundle(two_files(tmp_path / "b", **changes))
