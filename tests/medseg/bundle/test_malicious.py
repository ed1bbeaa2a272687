"""Bundles that try to run code, read outside their folder or exhaust the machine: each refused, none executes anything.

All cases run in one process of their own, under an audit hook (`judge`). Every payload would also leave a file behind,
the canary.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.medseg.bundle import judge, zoo

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CANARY = "CANARY"  # stands for the path of a file that only a payload would make
TOUCH = f"__import__('os').system('touch {CANARY}')"
RUN = f"os.system('touch {CANARY}')"  # the same, since the configuration imports os
LOADERS = (
    "(lambda: ().__class__.__base__.__subclasses__())()",
    "[c for c in ().__class__.__bases__[0].__subclasses__() if c.__name__ == 'Popen'][0](['touch', 'CANARY'])",
)


def at(path: str, value: Any) -> Callable[[Path], object]:
    """Put a value at `a::b::0` of configs/inference.json."""

    def change(folder: Path) -> None:
        def put(content: dict[str, Any]) -> None:
            *parents, last = path.split("::")
            holder: Any = content
            for key in parents:
                holder = holder[int(key)] if isinstance(holder, list) else holder[key]
            if isinstance(holder, list):
                holder.insert(int(last), value)
            else:
                holder[last] = value

        zoo.rewrite(folder, put)

    return change


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder) for change in changes]


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


def pickled(folder: Path) -> None:
    (folder / "models/model.pt").write_bytes(pickle.dumps(Payload(str(judge.canary(folder)))))


def pickled_in_checkpoint(folder: Path) -> None:
    torch.save({"model": Payload(str(judge.canary(folder)))}, folder / "models/model.pt")


def whole_module(folder: Path) -> None:
    torch.save(torch.nn.Conv3d(1, 2, 1), folder / "models/model.pt")


def torchscript(folder: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 2, 2, 2)), folder / "models/model.pt")


def linked_weights(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}.outside.pt"
    (folder / "models/model.pt").rename(outside)
    (folder / "models/model.pt").symlink_to(outside)


def linked_models(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}.outside"
    (folder / "models").rename(outside)
    (folder / "models").symlink_to(outside)


def linked_config(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}.inference.json"
    (folder / "configs/inference.json").rename(outside)
    (folder / "configs/inference.json").symlink_to(outside)


def only_torchscript(folder: Path) -> None:
    torchscript(folder)
    (folder / "models/model.pt").rename(folder / "models/model.ts")


def deep(folder: Path) -> None:
    (folder / "configs/inference.json").write_text("[" * 100_000 + "]" * 100_000)


def digits(text: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "configs/inference.json"
        file.write_text(file.read_text().replace("164", text, 1))

    return change


def laughs(reference: str) -> Callable[[Path], object]:
    """Each of 30 keys holds ten times the next."""

    def change(content: dict[str, Any]) -> None:
        for i in range(30):
            content[f"l{i}"] = [f"{reference}l{i + 1}"] * 10
        content["l30"] = 1
        content["network_def"]["channels"] = "@l0"

    return lambda folder: zoo.rewrite(folder, change)


def outside_json(folder: Path) -> None:
    (folder.parent / "secret.json").write_text('{"a": 3}')


def linked_secret(folder: Path) -> None:
    (folder / "configs/secret.json").symlink_to(folder.parent / "secret.json")


PARAMETER = "network_def::dropout"
STEP = "preprocessing::transforms::2"

# what is done to a sound bundle, and the key that the refusal names
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    # code after $
    "os.system": (at(PARAMETER, f"${TOUCH}"), "network_def::dropout"),
    "os.system without underscores": (at(PARAMETER, f"${RUN}"), "network_def::dropout"),
    "bare name": (at(PARAMETER, "$os"), "network_def::dropout"),
    "import statement": (at(PARAMETER, "$import os"), "network_def::dropout"),
    "torch.load": (at(PARAMETER, "$torch.load('CANARY')"), "network_def::dropout"),
    "torch.hub": (at("network_def", "$torch.hub.load('a/b', 'c', source='local')"), "network_def"),
    "dotted walk": (at(PARAMETER, f"$monai.utils.misc.os.system('touch {CANARY}')"), "network_def::dropout"),
    "second walk": (
        at(PARAMETER, "$torch.nn.functional.importlib.import_module('os').system('touch CANARY')"),
        "network_def::dropout",
    ),
    "subclasses": (at(PARAMETER, f"${LOADERS[0]}"), "network_def::dropout"),
    "comprehension": (at(PARAMETER, f"${LOADERS[1]}"), "network_def::dropout"),
    "generator": (at(PARAMETER, f"$list(x for x in [{RUN}])"), "network_def::dropout"),
    "f-string": (at(PARAMETER, f"$f'{{{RUN}}}'"), "network_def::dropout"),
    "f-string attribute": (at(PARAMETER, "$f'{@pixdim.append}'"), "network_def::dropout"),
    "str.format": (at(PARAMETER, "$'{0.denominator}'.format(1)"), "network_def::dropout"),
    "percent format": (at(PARAMETER, "$'%1000000000d' % 1"), "network_def::dropout"),
    "lambda": (at(PARAMETER, f"$(lambda: {RUN})()"), "network_def::dropout"),
    "walrus": (at(PARAMETER, f"$(x := {RUN})"), "network_def::dropout"),
    "getattr": (at(PARAMETER, "$getattr(@network_def, 'x')"), "network_def::dropout"),
    "eval": (at(PARAMETER, f'$eval("{TOUCH}")'), "network_def::dropout"),
    "open": (at(PARAMETER, f"$open('{CANARY}', 'w')"), "network_def::dropout"),
    "dunder of a reference": (at(PARAMETER, "$@network_def.__class__"), "network_def::dropout"),
    "attribute of a reference": (at(PARAMETER, "$@network_def.update"), "network_def::dropout"),
    "call of a reference": (at(PARAMETER, "$@preprocessing(1)"), "network_def::dropout"),
    "disguised .to": (at(PARAMETER, f"$@network_def.to({RUN})"), "network_def::dropout"),
    "disguised device": (
        at("inferer::overlap", f"$torch.device('cuda:0' if {RUN} else 'cpu')"),
        "inferer::overlap",
    ),
    "placeholder name": (at(PARAMETER, "$reference__0"), "network_def::dropout"),
    "full-width letters": (at(PARAMETER, "$\uff4f\uff53.system('touch CANARY')"), "network_def::dropout"),
    "in an index": (at(PARAMETER, f"$[1][{RUN}]"), "network_def::dropout"),
    "in the branch not taken": (at("preprocessing", f"$@network_def if True else {RUN}"), "preprocessing"),
    "nested argument": (at(f"{STEP}", {"_target_": "Flipd", "keys": "image", "x": [{"y": f"${RUN}"}]}), f"{STEP}::x"),
    "through a reference": (both(at("evil", f"${TOUCH}"), at(PARAMETER, "@evil")), "evil"),
    "through a macro": (both(at("evil", f"${RUN}"), at(PARAMETER, "%evil")), "evil"),
    "disabled by code": (at("network_def::_disabled_", f"${RUN}"), "network_def::_disabled_"),
    # names after _target_
    "target os.system": (at("network_def::_target_", "os.system"), "network_def::_target_"),
    "target walks": (at("network_def::_target_", "monai.utils.misc.os.system"), "network_def::_target_"),
    "target subprocess": (at(STEP, {"_target_": "subprocess.Popen", "args": ["touch", CANARY]}), f"{STEP}::_target_"),
    "target eval": (at(STEP, {"_target_": "builtins.eval", "_": TOUCH}), f"{STEP}::_target_"),
    "target torch.load": (at(STEP, {"_target_": "torch.load", "f": CANARY}), f"{STEP}::_target_"),
    "target torch.hub": (
        at("network_def", {"_target_": "torch.hub.load", "repo_or_dir": "a/b"}),
        "network_def::_target_",
    ),
    "target of the bundle": (at("network_def::_target_", "scripts.net.Net"), "network_def::_target_"),
    "target Lambdad": (at(STEP, {"_target_": "Lambdad", "keys": "image", "func": "$print"}), f"{STEP}::_target_"),
    "target torchvision": (at("network_def::_target_", "TorchVisionFCModel"), "network_def::_target_"),
    "target look-alike": (at("network_def::_target_", "UN\u0435t"), "network_def::_target_"),
    "target full-width": (at("network_def::_target_", "\uff35\uff2eet"), "network_def::_target_"),
    "target reference": (both(at("t", "os.system"), at("network_def::_target_", "@t")), "network_def::_target_"),
    "target expression": (at("network_def::_target_", f"${TOUCH}"), "network_def::_target_"),
    "target of another kind": (at("network_def", {"_target_": "SimpleInferer"}), "network_def::_target_"),
    "nested target": (at(PARAMETER, {"_target_": "os.system", "command": f"touch {CANARY}"}), f"{PARAMETER}::_target_"),
    "_mode_ callable": (at("network_def::_mode_", "callable"), "network_def::_mode_"),
    "_mode_ debug": (at("network_def::_mode_", "debug"), "network_def::_mode_"),
    "_requires_": (at("network_def::_requires_", f"${TOUCH}"), "network_def::_requires_"),
    # ways out of the folder
    "macro up": (both(outside_json, at(PARAMETER, "%../secret.json::a")), "network_def::dropout"),
    "macro absolute": (both(outside_json, at(PARAMETER, "%/etc/passwd.json::a")), "network_def::dropout"),
    "macro over configs": (
        both(outside_json, at(PARAMETER, "%configs/../../secret.json::a")),
        "network_def::dropout",
    ),
    "macro of a linked file": (
        both(outside_json, linked_secret, at(PARAMETER, "%secret.json::a")),
        "network_def::dropout",
    ),
    "linked weights": (linked_weights, "models/model.pt"),
    "linked models": (linked_models, "models/model.pt"),
    "linked configuration": (linked_config, "configs/inference.json"),
    # exhaustion
    "cycle": (both(at("a", "@b"), at("b", "@a"), at(PARAMETER, "@a")), "a"),
    "self-reference": (at(PARAMETER, "@network_def"), "network_def"),
    "macro of itself": (both(at("a", ["%a", "%a"]), at(PARAMETER, "@a")), "a::0"),
    "laughs by reference": (laughs("@"), "l"),
    "laughs by macro": (laughs("%"), "l"),
    "power": (at(PARAMETER, "$9**9**9"), "network_def::dropout"),
    "negative power tower": (at(PARAMETER, "$(10.0**60)**60"), "network_def::dropout"),
    "long list": (at(PARAMETER, "$[0]*10**9"), "network_def::dropout"),
    "long text": (at(PARAMETER, "$'a'*10**9"), "network_def::dropout"),
    "list of lists": (at(PARAMETER, "$[[0]*9999]*9999"), "network_def"),
    "long expression": (at(PARAMETER, "$" + "1+" * 100_000 + "1"), "network_def::dropout"),
    "deep expression": (at(PARAMETER, "$" + "(" * 400 + "1" + ")" * 400), "network_def::dropout"),
    "deep minus": (at(PARAMETER, "$" + "-" * 900 + "1"), "network_def::dropout"),
    "deep JSON": (deep, "configs/inference.json"),
    "window of a terabyte": (at("inferer::roi_size", [10**6] * 3), "inferer::roi_size"),
    "channels without end": (at("network_def::out_channels", 10**12), "network_def::out_channels"),
    "spacing of nothing": (at(f"{STEP}", {"_target_": "Spacingd", "keys": "image", "pixdim": 1e-9}), f"{STEP}::pixdim"),
    "number of many digits": (digits("9" * 4000), "configs/inference.json"),
    "number of more digits": (digits("9" * 9000), "configs/inference.json"),
    "infinite number": (digits("1e999"), "configs/inference.json"),
    "no number": (digits("NaN"), "configs/inference.json"),
    # weights
    "pickle": (pickled, "models/model.pt"),
    "pickle in a checkpoint": (pickled_in_checkpoint, "models/model.pt"),
    "pickled module": (whole_module, "models/model.pt"),
    "TorchScript": (torchscript, "models/model.pt"),
    "TorchScript by name": (only_torchscript, "models/model.ts"),
}

LOGGING = """[loggers]
keys=root
[handlers]
keys=h
[formatters]
keys=
[logger_root]
level=DEBUG
handlers=h
[handler_h]
class=__import__('os').system
args=("touch CANARY",)
"""

# what inference does not need is not looked at
IGNORED: dict[str, Callable[[Path], object]] = {
    "imports": at("imports::0", "$import antigravity"),
    "initialize": at("initialize::0", f"${TOUCH}"),
    "run": at("run::0", f"${TOUCH}"),
    "dataset": at("dataset::data", f"${TOUCH}"),
    "evaluator": at("evaluator", {"_target_": "subprocess.run", "args": ["touch", CANARY]}),
    "handlers": at("handlers::0", {"_target_": "os.system", "command": f"touch {CANARY}"}),
    "device": at("device", f"${TOUCH}"),
    "network beside network_def": at("network", f"${TOUCH}"),
    "LoadImage's reader": at("preprocessing::transforms::0::reader", f"${TOUCH}"),
    "SaveImage's writer": at("postprocessing::transforms::3::writer", {"_target_": "os.system", "x": CANARY}),
    "logging.conf": lambda folder: (folder / "configs/logging.conf").write_text(LOGGING),
    "scripts": lambda folder: (folder / "sitecustomize.py").write_text(TOUCH),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """See `judge.verdicts`."""
    root = tmp_path_factory.mktemp("malicious")
    sound = zoo.spleen_like(root / "sound")
    broken = shutil.copytree(sound, root / "broken")
    (broken / "models/model.pt").write_bytes(b"no tensors")
    changes = {name: change for name, (change, _) in REFUSED.items()} | IGNORED
    assert len(changes) == len(REFUSED) + len(IGNORED)
    folders = {name: root / f"case{i}" for i, name in enumerate(changes)}
    for name, folder in folders.items():
        shutil.copytree(sound, folder)
        changes[name](folder)
        for file in (folder / "configs").iterdir():
            if not file.is_symlink():
                file.write_text(file.read_text().replace(CANARY, str(judge.canary(folder))))
    return judge.verdicts(sound, folders, first=[broken])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_its_key_and_nothing_ran(name: str, verdicts: dict[str, Any]) -> None:
    verdict = verdicts[name]
    assert verdict["answer"] is not None, "it was loaded"
    kind, key, message = verdict["answer"]
    assert (kind, key[: len(REFUSED[name][1])]) == ("InvalidBundle", REFUSED[name][1]), message
    assert "\n" not in message
    assert len(message) < 500
    assert verdict["events"] == []
    assert not verdict["canary"]


@pytest.mark.parametrize("name", IGNORED)
def test_what_inference_does_not_need_is_never_evaluated(name: str, verdicts: dict[str, Any]) -> None:
    assert verdicts[name] == {"answer": None, "events": [], "canary": False}


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """MONAI's own parser runs the payload that ours refuses, so the payload is one."""
    canary = tmp_path / "canary"
    from monai.bundle import ConfigParser

    parser = ConfigParser({"network_def": f"${TOUCH.replace(CANARY, str(canary))}"})
    parser.get_parsed_content("network_def")
    assert canary.exists()
