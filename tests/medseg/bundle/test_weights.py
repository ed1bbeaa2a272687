"""A bundle's weights are those that its configuration loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medseg.bundle.describe import details
from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.errors import InvalidBundle
from medseg.job.exits import exit_code
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
def test_the_loaders_path(path: str, tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", checkpointloader=loader(path))
    bundle = load_bundle(folder)
    assert bundle.weights == folder / "models/other.pt"
    assert details(bundle)["weights"] == "models/other.pt"
    assert seed_of(folder) == 2


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_that_loads(expression: str, tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", initialize=[expression], checkpoint="$torch.load(@ckpt_path)")
    assert seed_of(folder) == 2


def test_a_handler_of_the_evaluator(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", handlers=[loader("@ckpt_path")], initialize=[])
    assert seed_of(folder) == 2


def test_each_setting_has_its_own_weights(tmp_path: Path) -> None:
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


def test_the_entry_that_is_named(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", checkpointloader=loader("@ckpt_path", load_dict={"ema": "@network_def"}))
    assert seed_of(folder) == 3
    zoo.rewrite(folder, lambda c: c["checkpointloader"].update(load_dict={"net": "@network"}))
    assert seed_of(folder) == 2  # no such entry: as MONAI the whole, in which "model" is the usual one


def test_loaders_of_other_networks_do_not_count(tmp_path: Path) -> None:
    other = {"_target_": "UNet", "spatial_dims": 3}
    for change in (
        {"handlers": [loader("@ckpt_path", load_dict={"model": "@other_def"})], "other_def": other},
        {"spare": loader("@ckpt_path")},  # the one that runs counts
        {"handlers": [loader("@ckpt_path", _disabled_=True)]},
        {"initialize": ["$@checkpointloader(@evaluator)", "$@other(@evaluator) if @highres else None"]}
        | {"other": loader("@ckpt_path")},
    ):
        assert seed_of(two_files(tmp_path / str(len(list(tmp_path.iterdir()))), **change)) == 1


def test_without_a_loader_the_usual_names_hold(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", initialize=[])
    zoo.rewrite(folder, lambda config: config.pop("checkpointloader"))
    assert seed_of(folder) == 1


def test_a_loader_that_nothing_runs_still_names_the_weights(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", initialize=[], checkpointloader=loader("@ckpt_path"))
    assert seed_of(folder) == 2


def test_safetensors_stand_for_a_file_of_the_same_stem_alone(tmp_path: Path) -> None:
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
def test_two_files_of_one_stem_that_differ_are_refused(named: bool, tmp_path: Path) -> None:
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
    "a folder": ({"checkpointloader": loader("@bundle_root")}, "not a file"),
    "a path too long": ({"checkpointloader": loader("models/" + "m" * 300 + ".pt")}, "no weights"),
    "a path of no bytes": ({"checkpointloader": loader("models/\0.pt")}, "no weights"),
    "a number": ({"checkpointloader": loader("$1 + 1")}, "expected the path of the weights, found int"),
    "names elsewhere": (
        {"checkpointloader": loader("models/model.pt", load_dict="$dict(model=@network)")},
        "load_dict",
    ),
    "names unpacked": ({"checkpointloader": loader("models/model.pt", load_dict="$dict(**@highres)")}, "load_dict"),
    "names in a circle": ({"checkpointloader": loader("models/model.pt", load_dict="@a"), "a": "@a"}, "written out"),
    "no names": ({"checkpointloader": {"_target_": "CheckpointLoader", "load_path": "models/model.pt"}}, "load_dict"),
    "a loader of its own": (
        {"handlers": [{"_target_": "scripts.WeightsLoader", "model": "@network", "path": "models/other.pt"}]},
        r"handlers::0.*scripts\.WeightsLoader.*not read",
    ),
    "a method as a component": (
        {"initialize": [{"_target_": "$@network_def.load_state_dict", "state_dict": "$torch.load(@ckpt_path)"}]},
        "not read",
    ),
    "a loader in an expression": (
        {"initialize": ["$CheckpointLoader(load_path=@ckpt_path, load_dict={'model': @network})(@evaluator)"]},
        "not read",
    ),
    "a loop": ({"initialize": ["$[n.load_state_dict(torch.load(@ckpt_path)) for n in [@network]]"]}, "not read"),
    "a function that is given them": (
        {"initialize": ["$scripts.give(@network, @checkpoint)"], "checkpoint": "$torch.load(@ckpt_path)"}
        | {"checkpointloader": 0},
        "checkpoint.*not read",
    ),
    "a checkpoint in a circle": (
        {"initialize": ["$@network.load_state_dict(@checkpoint)"], "checkpoint": "$@checkpoint['model']"},
        "refers to itself",
    ),
    "a chain too long": ({f"a{n}": f"@a{n + 1}" for n in range(2000)} | {"initialize": ["@a0"]}, "nested too deep"),
}


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match=why):
        load_bundle(two_files(tmp_path / "b", **changes))


def test_configurations_in_circles_and_of_many_copies_end(tmp_path: Path) -> None:
    """Each would be gone through without end, or 30 ** 30 times."""
    doubled = {f"a{n}": [f"%a{n + 1}", f"@a{n + 1}"] * 15 for n in range(30)} | {"a30": "@a0"}
    circles = {"b": "%b", "c": ["@c", "%c"], "d": "$[@d, @b]", "e": ["%inference.json::e"]}
    networks = {f"n{n}": f"$[{', '.join([f'@n{n + 1}'] * 30)}]" for n in range(30)}
    wrapped = {"w": {"_target_": "DataParallel", "module": "@w"}}
    uses = ["@a0", "%b", "@c", "@d", "@e", "$f(@n0)", {"_target_": "DataParallel", "module": "@w"}]
    changes = doubled | circles | networks | wrapped
    folder = two_files(tmp_path / "b", **changes, initialize=["$@checkpointloader(@evaluator)", *uses])
    assert seed_of(folder) == 1


@pytest.mark.parametrize("text", ["$f'{@a1}{@a1}'", "$os.path.join(@a1, @a1)", "$@a1 + @a1"])
def test_a_path_that_doubles_itself_is_refused(text: str, tmp_path: Path) -> None:
    doubling = {f"a{n}": text.replace("a1", f"a{n + 1}") for n in range(1, 40)} | {"a40": "models/other.pt"}
    with pytest.raises(InvalidBundle, match="10000"):
        load_bundle(two_files(tmp_path / "b", **doubling, checkpointloader=loader("@a1")))


@pytest.mark.parametrize("name", ["other.pt", "other.safetensors"])
@pytest.mark.parametrize("folder_too", [False, True])
def test_links_out_of_the_bundle_are_refused(name: str, folder_too: bool, tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", checkpointloader=loader("@ckpt_path"))
    away = (folder / "models").rename(tmp_path / "elsewhere")
    save_file(weights(2, folder), away / "other.safetensors")
    if folder_too:
        (folder / "models").symlink_to(away)
    else:
        (folder / "models").mkdir()
        (folder / "models" / name).symlink_to(away / name)
    with pytest.raises(InvalidBundle, match="leads out of the bundle's folder"):
        load_bundle(folder)


def test_nothing_that_a_configuration_says_is_run(tmp_path: Path) -> None:
    """Whatever it is: read or refused, and the file that any of it would make is not there."""
    mark = tmp_path / "was run"
    code = f"open({str(mark)!r}, 'w')"
    for n, changes in enumerate(
        (
            {"checkpointloader": loader(f"${code}")},
            {"checkpointloader": loader("models/model.pt", load_dict=f"${code}")},
            {"checkpointloader": loader("models/model.pt", _disabled_=f"${code}")},
            {"checkpointloader": loader("models/model.pt", extra=f"${code}")},
            {"initialize": [f"$@network.load_state_dict(torch.load({code}))"]},
            {"initialize": [f"$@network.load_state_dict({code})", f"${code}", {"_target_": f"${code}"}]},
            {"initialize": [f"$@checkpointloader(@evaluator) if {code} else None", {"_target_": "open", "file": "x"}]},
            {"ckpt_path": f"${code}", "checkpointloader": loader("$str(@ckpt_path) + f'{@ckpt_path}'")},
        )
    ):
        folder = two_files(tmp_path / str(n), **changes)
        with suppress(InvalidBundle):
            load_network(load_bundle(folder), CPU)
        assert not mark.exists(), changes


def test_a_twin_is_read_as_tensors_alone(tmp_path: Path) -> None:
    folder, mark = two_files(tmp_path / "b"), tmp_path / "was run"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
            return mark.touch, ()

    save_file(weights(1, folder), folder / "models/model.safetensors")
    torch.save({"model": Payload()}, folder / "models/model.pt")
    with pytest.raises(InvalidBundle, match=r"models/model\.pt: not a file of plain tensors"):
        load_network(load_bundle(folder), CPU)
    assert not mark.exists()


def test_the_command_line_refuses_with_its_own_code(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "b", checkpointloader=loader("models/none.pt"))
    with pytest.raises(InvalidBundle, match=r"models/none\.pt") as refusal:
        load_bundle(folder)
    assert exit_code(refusal.value) == 4


def test_what_a_name_means_beside_the_network(tmp_path: Path) -> None:
    optimizer = {"optimizer": "$torch.optim.Adam(@network.parameters())"}
    both = loader("@ckpt_path", load_dict={"optimizer": "@optimizer", "ema": "$torch.compile(@network.to(@device))"})
    assert seed_of(two_files(tmp_path / "a", checkpointloader=both, **optimizer)) == 3
    written = loader("@ckpt_path", load_dict="${'optimizer': @optimizer, 'ema': @network_def.to(@device)}")
    assert seed_of(two_files(tmp_path / "b", checkpointloader=written, **optimizer)) == 3
    spare = {"checkpointloader": 0, "initialize": [], "spare": {"loaders": [loader("@ckpt_path")]}}
    assert seed_of(two_files(tmp_path / "c", **spare)) == 2
    saver = {"handlers": [{"_target_": "CheckpointSaver", "save_dict": {"model": "@network"}, "net": "@network"}]}
    assert seed_of(two_files(tmp_path / "d", **saver)) == 1
