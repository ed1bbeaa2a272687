"""A folder of nnU-Net on a CT of 512x512: nnU-Net's own predictor beside medseg, in turns.

    python benchmarks/nnunet.py --nnunet-python PYTHON [--rounds 3] [--slices 120] [--size 512] [--taller 480]
        [--widths 32,64,128,256,320,320] [--window 128] [--classes 25] [--threads 2] > nnunet.jsonl

The network is nnU-Net's default (PlainConvUNet) with random weights whose labels are smooth, as trained ones are:
kernels are averages, and what the outermost stages skip counts little. Its plans ask for 2 mm, and half of a window
overlaps; nothing is mirrored. The image is a phantom of 0.8 x 0.8 x 2.5 mm (temporary files, deleted).

nnunet: nnUNetPredictor of nnunetv2, in the Python that is named, from an uncompressed NIfTI file to one of labels,
without its worker processes. medseg: `medseg.job.run`, from DICOM to SEG, SR and NIfTI, verified; with an engine that
was found for this folder, or made, before. Every turn is a process of its own; time begins when its libraries are
loaded, and memory is that of the whole process at its highest (VmHWM). The network's seconds are those in its calls.
`cpu`: time of the process on all cores, which tells more where others use the machine.

One JSON line for each turn, then medians and medseg's share of nnU-Net's, and how many voxels have the same label. With
--taller a last turn of medseg alone tells how its memory grows with the slices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from memory import TELL  # beside this file
from streaming import ROOT, write_mirrored  # makes the checkout importable
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import Ellipsoid, make_series
from medseg.dicom.sources import find_instances, to_series
from medseg.inference.engines.engine import Engine
from medseg.inference.engines.selection import AUTO
from medseg.inference.nnunet.case import folds_of
from medseg.inference.segment import NETWORKS
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.plan import Job, plan
from medseg.job.run import run
from medseg.networks.plain_conv_unet import PlainConvUNet

MM = (2.5, 0.8, 0.8)
KEYS = ("total_s", "network_s", "rest_s", "cpu_s", "network_cpu_s", "rest_cpu_s", "peak_mb")
CPU = torch.device("cpu")
PATHS = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
MAKE = (
    "import sys; from pathlib import Path; from nnunet import make_engine; make_engine(Path(sys.argv[1]), sys.argv[2])"
)
OURS = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
from pathlib import Path
from nnunet import medseg_turn
folder, study, out, engine = sys.argv[1:]
medseg_turn(Path(folder), Path(study), Path(out), engine)
"""
NOISE = 20  # HU
OUTER = 4  # stages whose skips count little
LITTLE = 0.02
THEIRS = """
import json, time
from pathlib import Path
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
folder, source, out, threads = Path(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(int(threads))
def clocks():
    return time.perf_counter(), time.process_time()
def since_then(then):
    return [now - before for now, before in zip(clocks(), then)]
begun = clocks()
plans, dataset = PlansManager(str(folder / "plans.json")), json.loads((folder / "dataset.json").read_text())
configuration = plans.get_configuration("3d_fullres")
network = get_network_from_plans(
    configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
    configuration.network_arch_init_kwargs_req_import, 1, plans.get_label_manager(dataset).num_segmentation_heads,
    allow_init=True, deep_supervision=False)
saved = torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)["network_weights"]
network.load_state_dict(saved)
predictor = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"),
    perform_everything_on_device=False, verbose=False, allow_tqdm=False)
predictor.manual_initialization(network, plans, configuration, [saved], dataset, "nnUNetTrainer", None)
forward, spent = network.forward, []
def timed(x):
    since = clocks()
    made = forward(x)
    spent.append(since_then(since))
    return made
network.forward = timed
predictor.predict_from_files_sequential([[source]], [out], save_probabilities=False, overwrite=True)
(total, cpu), network = since_then(begun), [sum(times) for times in zip(*spent)]
facts = {"total_s": total, "network_s": network[0], "cpu_s": cpu, "network_cpu_s": network[1]}
print(json.dumps(facts | {"windows": len(spent)}))
"""


def make_folder(folder: Path, widths: list[int], window: int, classes: int) -> Path:
    """A trained model's folder, as nnU-Net leaves it."""
    stages = len(widths)
    kernels, strides = [[3] * 3] * stages, [[1] * 3] + [[2] * 3] * (stages - 1)
    convs = [2] * stages
    named = {"conv_op": "conv.Conv3d", "norm_op": "instancenorm.InstanceNorm3d", "nonlin": "activation.LeakyReLU"}
    architecture = {
        "n_stages": stages,
        "features_per_stage": widths,
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": convs,
        "n_conv_per_stage_decoder": convs[1:],
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **{key: f"torch.nn.modules.{name}" for key, name in named.items()},
    }
    configuration: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 2,
        "patch_size": [window] * 3,
        "spacing": [2.0] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        how = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{what}_kwargs"] = how
    intensities = {"mean": 60.0, "std": 80.0, "percentile_00_5": -160.0, "percentile_99_5": 240.0}
    plans = {
        "dataset_name": "Dataset001_Phantom",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": intensities | {"min": -1000.0, "max": 1000.0, "median": 50.0}
        },
    }
    labels = {f"organ {n}" if n else "background": n for n in range(classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii"}
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans), "utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), "utf-8")
    network = PlainConvUNet(
        3, 1, classes, widths=widths, kernels=kernels, strides=strides, convs=convs, convs_up=convs[1:]
    )
    smoothen(network)
    about = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset}
    saved = {"network_weights": network.state_dict(), "init_args": about, "trainer_name": "nnUNetTrainer"}
    torch.save(saved | {"inference_allowed_mirroring_axes": None}, folder / "fold_0/checkpoint_final.pth")
    return folder


def smoothen(network: PlainConvUNet) -> None:
    """Random weights of smooth labels: what the outermost stages make of what lies below is an average, and what they
    skip counts little."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, 0.01)
        for enlarge, stage in list(zip(network.decoder.transpconvs, network.decoder.stages, strict=True))[-OUTER:]:
            convs = [module for module in stage.modules() if isinstance(module, nn.Conv3d)]
            ups = [module for module in enlarge.modules() if isinstance(module, nn.ConvTranspose3d)]
            for weight in (module.weight for module in (*ups, *convs)):
                weight.copy_(weight.mean((2, 3, 4), keepdim=True).expand_as(weight))
            convs[0].weight[:, convs[0].in_channels // 2 :] *= LITTLE


def make_study(folder: Path, slices: int, size: int, bundle: Bundle) -> tuple[Path, Path]:
    """A DICOM series, and the same as NIfTI."""
    body = Ellipsoid((0, 0, 0), (180, 130, 10_000), 40)
    organs = [
        Ellipsoid((70 * side, 30 * up, 100 * up), (45, 40, 60), 60 + 40 * up) for side in (-1, 1) for up in (-1, 1)
    ]
    folder.mkdir()
    study, path = folder / "study", folder / "case_0000.nii"
    once, noise = make_series(shape=(120, size, size), spacing_mm=MM, objects=[body, *organs]), np.random.default_rng(0)
    for slice_ in once:
        stored = slice_.pixel_array + np.rint(noise.normal(0, NOISE, (size, size)))
        slice_.PixelData = np.clip(stored, 0, 4095).astype(slice_.pixel_array.dtype).tobytes()
    write_mirrored(study, once, slices, MM[0])
    stack = job_of(study, bundle).stack
    voxels = np.stack([piece.read() for piece in stack.slices]).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), path)
    return study, path


def job_of(study: Path, bundle: Bundle) -> Job:
    (job,) = plan([to_series(find_instances(study).instances)], [bundle], explicit=True).jobs
    return job


def make_engine(folder: Path, name: str) -> None:
    """What jobs will find made: the engine that is named, or the one that wins."""
    bundle = folds_of(load_bundle(folder))[0]
    noise = torch.rand(1, 1, *bundle.recipe.window.roi, generator=torch.Generator().manual_seed(0))
    engine = Engine(NETWORKS.get(bundle, CPU), bundle, CPU, engine=name)
    if name != AUTO:
        engine(noise)
        return
    for entry in engine.race(noise).entries:
        facts = {key: value for key, value in asdict(entry).items() if value and key not in ("folder", "files")}
        print(json.dumps(facts), flush=True)


def clocks() -> tuple[float, float]:
    """Of the wall, and of this process on all cores."""
    return time.perf_counter(), time.process_time()


def since_then(then: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = clocks()
    return wall - then[0], cpu - then[1]


def medseg_turn(folder: Path, study: Path, out: Path, engine: str) -> None:
    """In a process of its own; prints what it took."""
    spent: list[tuple[float, float]] = []
    call = Engine.__call__

    def timed(engine: Engine, windows: torch.Tensor) -> torch.Tensor:
        since = clocks()
        made = call(engine, windows)
        spent.append(since_then(since))
        return made

    Engine.__call__ = timed  # type: ignore[assignment, method-assign]
    begun = clocks()
    job = job_of(study, load_bundle(folder))
    formats = frozenset({Format.SEG, Format.SR, Format.NIFTI})
    outcome = run(job, out, formats, settings=Settings(device="cpu", engine=engine))
    (total, cpu), network = since_then(begun), [sum(times) for times in zip(*spent, strict=True)]
    facts = {"total_s": total, "network_s": network[0], "cpu_s": cpu, "network_cpu_s": network[1]}
    facts |= {"windows": len(spent), "engine": outcome.record["engine"]}
    print(json.dumps(facts | {"timings_s": outcome.record["timings_s"]}))


def turn(python: Path | str, program: str, arguments: Sequence[str | Path], threads: int) -> dict[str, Any]:
    """What a process says of itself in its last line, and its peak memory."""
    number = str(threads)
    held = {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "PYTHONPATH": ""}
    held |= dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/")
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [python, "-c", TELL + program, peak.name, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | held)
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        facts["peak_mb"] = round(int(peak.read()) / 1024)
    facts["rest_s"] = facts["total_s"] - facts["network_s"]
    facts["rest_cpu_s"] = facts["cpu_s"] - facts["network_cpu_s"]
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in facts.items()}


def alike(ours: Path, theirs: Path) -> float:
    """Share of voxels with the same label."""
    mine, its = (np.asarray(nibabel.load(path).dataobj) for path in (ours, theirs))
    return float(np.mean(mine == its))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--nnunet-python", type=Path, help="a Python that has nnunetv2; without, medseg runs alone")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slices", type=int, default=120)
    options.add_argument("--size", type=int, default=512, help="rows and columns")
    options.add_argument("--taller", type=int, default=0, help="slices of a last turn, for its memory")
    options.add_argument("--widths", default="32,64,128,256,320,320", help="of the network, stage by stage")
    options.add_argument("--window", type=int, default=128)
    options.add_argument("--classes", type=int, default=25, help="the background among them")
    options.add_argument("--engine", default="auto")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    turns: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["MEDSEG_CACHE"] = str(work / "cache")
        widths = [int(width) for width in chosen.widths.split(",")]
        folder = make_folder(work / "model", widths, chosen.window, chosen.classes)
        study, source = make_study(work / "source", chosen.slices, chosen.size, load_bundle(folder))

        def take(
            way: str, python: Path | str, program: str, arguments: Sequence[str | Path], slices: int = chosen.slices
        ) -> None:
            facts = turn(python, program, arguments, chosen.threads)
            print(json.dumps({"way": way, "slices": slices, "load": os.getloadavg()[0]} | facts), flush=True)
            turns.setdefault(way, []).append(facts)

        def medseg(way: str, source: Path, out: Path, slices: int = chosen.slices) -> None:
            take(way, sys.executable, OURS, [folder, source, out, chosen.engine], slices)

        subprocess.run([sys.executable, "-c", MAKE, folder, chosen.engine], check=True, env=os.environ | PATHS)
        for number in range(chosen.rounds):
            ours, theirs = work / f"ours {number}", work / f"theirs {number}"
            if chosen.nnunet_python:
                theirs.mkdir()
                take("nnunet", chosen.nnunet_python, THEIRS, [folder, source, theirs / "case", str(chosen.threads)])
            medseg("medseg", study, ours)
            if chosen.nnunet_python:
                same = alike(next(ours.glob("*/labels.nii.gz")), theirs / "case.nii")
                print(json.dumps({"same labels": same}), flush=True)
        if chosen.taller:
            taller, _ = make_study(work / "taller", chosen.taller, chosen.size, load_bundle(folder))
            medseg("medseg taller", taller, work / "ours taller", chosen.taller)
    tell(turns)


def tell(turns: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Medians of each way, and their share of nnU-Net's; of the taller series, of the other's."""
    medians = {way: {key: statistics.median(one[key] for one in facts) for key in KEYS} for way, facts in turns.items()}
    for way, facts in medians.items():
        base = medians.get("medseg" if way == "medseg taller" else "nnunet", facts)
        share = {key: round(value / base[key], 3) for key, value in facts.items()}
        print(json.dumps({"way": way, **facts, "share": share}))


if __name__ == "__main__":
    main()
