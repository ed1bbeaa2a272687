"""nnU-Net folders that run code, contradict themselves or are none: each refused in a sentence, none executes anything.

All are loaded in one process of their own under an audit hook (`judge`).
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.medseg.bundle import judge
from tests.medseg.nnunet_folders import WEIGHTS, plans, rewrite, rewrite_checkpoint, write

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Change = Callable[[Path], object]
PLAN = "configurations::net"
ARCH = f"{PLAN}::architecture"
KWARGS = f"{ARCH}::arch_kwargs"


class Payload:
    """Unpickling this makes a file, the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


def payload(folder: Path) -> Payload:
    return Payload(judge.canary(folder))


def put(path: str, value: Any, file: str = "plans.json") -> Change:
    """Another value at `a::b` of a JSON file; None takes it away."""

    def change(folder: Path) -> None:
        def inside(content: dict[str, Any]) -> None:
            *parents, last = path.split("::")
            for key in parents:
                content = content[key]
            if value is None:
                del content[last]
            else:
                content[last] = value

        rewrite(folder / file, inside)

    return change


def held(key: str, value: Callable[[Path], Any]) -> Change:
    """Another value in the checkpoint."""
    return lambda folder: rewrite_checkpoint(folder, lambda content: content.update({key: value(folder)}))


def weights(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: rewrite_checkpoint(folder, lambda content: change(content["network_weights"]))


def raw(content: Callable[[Path], bytes]) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(content(folder))


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def packed(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def script(folder: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 2, 2, 2)), folder / WEIGHTS)


def linked(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}.outside"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def version_1(folder: Path) -> None:
    (folder / "plans.json").unlink()
    (folder / "plans.pkl").write_bytes(pickle.dumps(payload(folder)))


def inheriting(names: str) -> Change:
    """Configurations that inherit from each other in a circle."""

    def change(content: dict[str, Any]) -> None:
        for one, other in zip(names, names[1:] + names[0], strict=True):
            content["configurations"][one] = {"inherits_from": other}
        content["configurations"]["net"]["inherits_from"] = names[0]

    return lambda folder: rewrite(folder / "plans.json", change)


def classes(count: int) -> Change:
    return put("labels", {"background": 0, **{f"class {n}": n for n in range(1, count + 1)}}, "dataset.json")


def postprocessing(**content: Any) -> Change:
    return lambda folder: (folder / "postprocessing.json").write_text(json.dumps(content))


def metadata(**options: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "configs").mkdir()
        (folder / "configs/metadata.json").write_text(json.dumps({"medseg": {"nnunet": options}}))

    return change


def huge(content: dict[str, Any]) -> None:
    """A tensor that claims 4 GB and holds one number."""
    content["encoder.stages.0.0.convs.0.conv.weight"] = torch.zeros(1).expand(1 << 30)


SYSTEM = "os.system"
KEEP = "remove_all_but_largest_component_from_segmentation"
# what is done to a sound folder, and what the sentence says
REFUSED: dict[str, tuple[Change, str]] = {
    # code in checkpoints
    "a payload for weights": (held("network_weights", payload), "posix.system"),
    "a payload beside them": (held("logging", lambda folder: {"x": [payload(folder)]}), "posix.system"),
    "a payload as trainer": (held("trainer_name", payload), "posix.system"),
    "a module": (held("network_weights", lambda _: torch.nn.Conv3d(1, 2, 1)), "torch.nn.modules.conv.Conv3d"),
    "a function": (held("init_args", lambda _: {"configuration": json.loads}), "json.loads"),
    "an array of objects": (held("_best_ema", lambda _: np.array([1, "a"], dtype=object)), "numpy"),
    "a numpy array": (held("_best_ema", lambda _: np.zeros(3)), "numpy"),
    "a plain pickle": (raw(lambda folder: pickle.dumps(payload(folder))), "damaged, cut short"),
    "a whole module": (lambda folder: torch.save(torch.nn.Conv3d(1, 2, 1), folder / WEIGHTS), "it names"),
    "TorchScript": (script, "TorchScript"),
    # checkpoints that are none
    "cut short": (cut, "damaged, cut short"),
    "empty": (raw(lambda _: b""), "damaged, cut short"),
    "packed": (packed, "packed"),
    "a list": (lambda folder: torch.save([1], folder / WEIGHTS), "expected a dict"),
    "only weights": (lambda folder: torch.save({"a": torch.ones(1)}, folder / WEIGHTS), "init_args"),
    "no weights": (held("network_weights", lambda _: {}), "network_weights"),
    "numbers for weights": (held("network_weights", lambda _: {"a": 1}), "expected names and tensors"),
    "a tensor of 4 GB": (weights(huge), "claims more values"),
    "another network's": (weights(lambda held: held.pop("decoder.seg_layers.0.bias")), "missing"),
    "another width": (put(f"{KWARGS}::features_per_stage", [4, 6]), "of another shape"),
    "another depth": (
        put(f"{KWARGS}::n_conv_per_stage", [2, 1]),
        "nnUNetTrainer, may have built another",
    ),
    "two values of a tensor": (
        weights(lambda held: held.update({"encoder.stages.0.0.convs.0.conv.bias": torch.ones(2)})),
        "different values",
    ),
    "not a number": (weights(lambda held: held["decoder.seg_layers.0.bias"].fill_(float("nan"))), "not finite"),
    "mirrored along a fourth axis": (held("inference_allowed_mirroring_axes", lambda _: (0, 3)), "mirroring"),
    "a configuration that is not there": (
        held("init_args", lambda _: {"configuration": "3d_fullres"}),
        "no '3d_fullres'",
    ),
    "a link out": (linked, "leads out"),
    "no folds": (lambda folder: shutil.rmtree(folder / "fold_0"), "no fold"),
    "a fold without checkpoint": (lambda folder: (folder / "fold_1").mkdir(), "no such checkpoint"),
    "a fold that is asked for": (metadata(folds=[0, 3]), "no such checkpoint"),
    # names in plans
    "a network of theirs": (put(f"{ARCH}::network_class_name", "nextou.NexToU"), "'nextou.NexToU' is not a network"),
    "a module for a network": (put(f"{ARCH}::network_class_name", SYSTEM), "is not a network"),
    "os.system as convolution": (put(f"{KWARGS}::conv_op", SYSTEM), "'os.system' is not a class"),
    "os.system as norm": (put(f"{KWARGS}::norm_op", SYSTEM), "'os.system' is not a class"),
    "os.system as nonlinearity": (put(f"{KWARGS}::nonlin", SYSTEM), "'os.system' is not a class"),
    "a way through torch": (put(f"{KWARGS}::nonlin", "torch.nn.os.system"), "is not a class"),
    "another thing to import": (put(f"{ARCH}::_kw_requires_import", ["conv_op", "os"]), "_kw_requires_import"),
    "an argument that is not known": (put(f"{KWARGS}::hook", "print"), "hook"),
    "2D layers in 3D": (put(f"{KWARGS}::conv_op", "torch.nn.modules.conv.Conv2d"), "Conv3d"),
    "a preprocessor of theirs": (put(f"{PLAN}::preprocessor_name", "MyPreprocessor"), "'MyPreprocessor'"),
    "a resampler of theirs": (put(f"{PLAN}::resampling_fn_data", "my_resampler"), "'my_resampler'"),
    "a normalisation of theirs": (put(f"{PLAN}::normalization_schemes", ["Mine"]), "'Mine'"),
    "a reader of theirs": (put("image_reader_writer", "MyIO"), "'MyIO'"),
    "a label manager of theirs": (put("label_manager", "Mine"), "'Mine'"),
    # plans that make no sense
    "version 1": (version_1, "version 1"),
    "plans of stages": (put("configurations", None), "version 1"),
    "inherits from itself": (inheriting("a"), "inherits from itself"),
    "a circle": (inheriting("abc"), "inherits from itself"),
    "deep": (lambda folder: (folder / "plans.json").write_text("[" * 100_000), "not a JSON file"),
    "no numbers": (put(f"{PLAN}::patch_size", ["8", 8, 8]), "patch_size"),
    "a huge window": (put(f"{PLAN}::patch_size", [8192, 8192, 8192]), "patch_size"),
    "a window that strides do not divide": (put(f"{PLAN}::patch_size", [9, 8, 8]), "is not divided"),
    "too many stages": (put(f"{KWARGS}::n_stages", 10**6), "n_stages"),
    "too wide": (put(f"{KWARGS}::features_per_stage", [2, 10**9]), "features_per_stage"),
    "a spacing of nothing": (put(f"{PLAN}::spacing", [0, 1, 1]), "spacing"),
    "axes twice": (put("transpose_forward", [0, 0, 1]), "transpose_forward"),
    "no way back": (put("transpose_backward", [1, 2, 0]), "transpose_forward"),
    # dataset.json against plans.json
    "another channel": (put("channel_names", {"0": "MR", "1": "CT"}, "dataset.json"), "2 channels in dataset.json"),
    "channels from 1": (put("channel_names", {"1": "MR"}, "dataset.json"), "channel_names"),
    "fewer labels": (put("labels", {"background": 0, "organ": 1}, "dataset.json"), "of another shape"),
    "no background": (put("labels", {"organ": 1}, "dataset.json"), "background"),
    "no labels": (put("labels", {"background": 0}, "dataset.json"), "no label but the background"),
    "256 classes": (classes(256), "256 classes: at most 255"),
    "ignored in between": (put("labels", {"background": 0, "ignore": 1, "organ": 2}, "dataset.json"), "ignore"),
    "regions without order": (put("labels", {"background": 0, "a": [1, 2], "b": 2}, "dataset.json"), "order"),
    # clean-up, metadata
    "clean-up of theirs": (postprocessing(postprocessing_fns=[SYSTEM], postprocessing_kwargs=[{}]), "'os.system'"),
    "clean-up of no label": (
        postprocessing(postprocessing_fns=[KEEP], postprocessing_kwargs=[{"labels_or_regions": [{"a": 1}]}]),
        "expected labels",
    ),
    "an unknown option": (metadata(hook="x"), "hook"),
    "a folder outside": (metadata(folder="../sound"), "leads out"),
    "an average of one": (metadata(average=[{"folder": "."}]), "expected several models"),
    "an average of parts": (metadata(average=[], parts=[]), "expected one of folder, parts and average"),
    "an average that leads out": (metadata(average=[{"folder": "."}, {"folder": "../sound"}]), "leads out"),
    "a step of nothing": (metadata(step=0), "step"),
}

IMPORTING = ("a payload for weights", "a plain pickle", "packed")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """See `judge.verdicts`."""
    root = tmp_path_factory.mktemp("refused")
    sound = write(root / "sound", plans(scheme="CTNormalization"), channels=("CT",), mirrored=(0, 1, 2))
    folders = {name: root / f"case{n}" for n, name in enumerate(REFUSED)}
    for name, folder in folders.items():
        shutil.copytree(sound, folder)
        REFUSED[name][0](folder)
    return judge.verdicts(sound, folders, first=[folders[name] for name in IMPORTING])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence_and_nothing_ran(name: str, verdicts: dict[str, Any]) -> None:
    verdict = verdicts[name]
    assert verdict["answer"] is not None, "it was loaded"
    sentence = verdict["answer"][2]
    assert REFUSED[name][1] in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert verdict["events"] == []
    assert not verdict["canary"]


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """torch's own loader runs the payload that ours refuses, so the payload is one."""
    folder = tmp_path / "one"
    write(folder)
    held("logging", payload)(folder)
    torch.load(folder / WEIGHTS, weights_only=False)
    assert (tmp_path / "one.canary").exists()
