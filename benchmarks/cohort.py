"""A cohort in one run, beside a shell loop of single runs over the same studies.

    python benchmarks/cohort.py [--studies 60] [--images FOLDER] [--jobs N] [--rounds 1] > cohort.jsonl
    python benchmarks/cohort.py --growth 60,600 [--jobs 1] > growth.jsonl

Studies are phantoms of a hippocampus's region for the shipped bundle, half of them DICOM and half NIfTI; with --images
NIfTI files of a folder take the place of these. Both ways are `medseg infer` as a user starts it, with an engine that
was chosen before.

One JSON line for each turn: seconds, the cores' time, and `busy`, the share of the cores' time that was used from the
first result to the last; then the ratio of the cohort's time to the loop's. The machine must have nothing else to do.

With --growth: one cohort of the most studies, very small phantoms for a network of one convolution. One JSON line for
each number of results: resident memory and open files of the process that leads and of its workers, the median of the
last thirty results. DICOM and NIfTI take turns. Other work on the machine does no harm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
from streaming import ROOT  # makes the checkout importable

from medseg.dicom.phantom import Ellipsoid, make_series, write_series

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def make_studies(folder: Path, count: int, images: Path | None) -> list[Path]:
    """Paths of studies: folders of DICOM and NIfTI files."""
    volumes = sorted(images.glob("*.nii*"))[: count // 2] if images else []
    made = [Path(shutil.copy(path, folder / path.name)) for path in volumes]
    for number in range(count - len(made)):
        objects = [Ellipsoid((0.0, 0.0, 0.0), (6.0 + number % 5, 14.0, 8.0), 300.0)]
        shape, spacing = (40, 52, 36), (1.0, 1.0, 1.0)
        series = make_series(shape=shape, spacing_mm=spacing, objects=objects, modality="MR", seed=number)
        if images is None and number % 2:
            voxels = np.stack([image.pixel_array for image in series], axis=2).astype(np.int16)
            path = folder / f"v{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
            made.append(path)
        else:
            for image in series:
                image.BodyPartExamined = "HEAD"
            write_series(series, folder / f"s{number}")
            made.append(folder / f"s{number}")
    return made


def timed(commands: Sequence[Sequence[object]]) -> tuple[float, float]:
    """Seconds, and the cores' time, of commands one after the other."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "medseg", "infer", *map(str, command)],
            env=ENVIRONMENT,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - begin, cores


def busy(cohort: Path, out: Path, arguments: Sequence[object]) -> float:
    """Share of the cores that a cohort's workers used between their first result and their last."""
    command = [sys.executable, "-m", "medseg", "infer", str(cohort), "-o", str(out), *map(str, arguments)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    marks = [(time.perf_counter(), cores_of(process.pid)) for _ in process.stdout]
    process.wait()
    (begin, first), (end, last) = marks[0], marks[-1]
    return (last - first) / ((end - begin) * (os.cpu_count() or 1))


def growth(counts: Sequence[int], jobs: int) -> None:
    """Memory and open files after so many results of one cohort, a JSON line each."""
    from tests.acceptance.test_geometry import threshold_bundle

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = threshold_bundle(work / "threshold")
        for number in range(max(counts)):
            box = [Ellipsoid((0.0, 0.0, 0.0), (4.0, 3.0 + number % 3, 4.0), 100.0)]
            series = make_series(shape=(6, 16, 16), spacing_mm=(2.0, 1.0, 1.0), objects=box, seed=number)
            if number % 2:
                voxels = np.stack([image.pixel_array - 1024.0 for image in series], axis=2).astype(np.int16)
                path = work / "in" / f"{series[0].StudyInstanceUID}v.nii"  # so that both kinds take turns
                nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
            else:
                write_series(series, work / "in" / f"s{number}")
        timed([[next((work / "in").iterdir()), "-o", work / "first", "--bundle", bundle]])  # which chooses an engine
        command = [sys.executable, "-m", "medseg", "infer", work / "in", "-o", work / "out", "--bundle", bundle]
        command += ["--jobs", jobs]
        arguments = [str(argument) for argument in command]
        process = subprocess.Popen(
            arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        taken: list[dict[str, float]] = []
        for _ in process.stdout:
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            taken.append(used("lead", [process.pid]) | used("workers", map(int, workers)))
            if len(taken) in counts:
                last = taken[-30:]
                medians = {key: round(float(np.median([one[key] for one in last])), 1) for key in last[0]}
                print(json.dumps({"results": len(taken)} | medians), flush=True)
        process.wait()


def used(who: str, pids: Iterable[int]) -> dict[str, float]:
    """Memory (MB) and open files of processes; of one that has just ended none."""
    mb, files = 0.0, 0
    for pid in pids:
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            mb += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024.0
            files += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return {f"{who}_mb": mb, f"{who}_files": float(files)}


def cores_of(pid: int) -> float:
    """Seconds that a process and its children have had of the cores."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cores_of(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bundle", default="hippocampus_t1_unet3d")
    parser.add_argument("--growth", metavar="N,N")
    options = parser.parse_args()
    if options.growth:
        growth([int(count) for count in options.growth.split(",")], options.jobs or 1)
        return
    jobs = ["--jobs", options.jobs] if options.jobs else []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        studies = make_studies(work / "in", options.studies, options.images)
        asked = ["--bundle", options.bundle]
        timed([[studies[0], "-o", work / "first", *asked]])
        ratios = []
        for turn in range(options.rounds):
            loop = [[path, "-o", work / f"loop {turn}" / path.name, *asked] for path in studies]
            each_s, each_cores = timed(loop)
            cohort_s, cohort_cores = timed([[work / "in", "-o", work / f"cohort {turn}", *asked, *jobs]])
            ratios.append(cohort_s / each_s)
            share = busy(work / "in", work / f"busy {turn}", [*asked, *jobs])
            print(json.dumps({"way": "loop", "s": round(each_s, 1), "cores_s": round(each_cores, 1)}))
            told = {"way": "cohort", "s": round(cohort_s, 1), "cores_s": round(cohort_cores, 1)}
            print(json.dumps(told | {"busy": round(share, 3)}), flush=True)
        ratio = round(float(np.median(ratios)), 3)
        print(json.dumps({"studies": len(studies), "cohort_is": ratio, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
