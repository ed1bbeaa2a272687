"""How long a result takes after the last slice: a tall CT that arrives at a pace, streamed and not, in turns.

    python benchmarks/streaming.py [--rounds 5] [--slices 476] [--rate 10] [--orders ascending,descending,shuffled]
                                   [--channels 4,8,16] [--data ct_ircadb01_17/PATIENT_DICOM.zip] > streaming.jsonl
    python benchmarks/streaming.py --plot streaming.jsonl docs/images/planes-ready.svg

The study is the IRCADb CT of 512x512x119, mirrored end to end until it is tall enough (temporary files, deleted; a
phantom of that size without --data). The network is that of MONAI's spleen bundle with random weights: window 96^3,
overlap 0.5, at 1.5 x 1.5 x 2 mm. Slices go through the pipeline's own source (`medseg.job.follow`), which says that it
is complete with the last of them, as a sender whose count is known does; with a count that is not known, the quiet time
comes on top of all of these times alike.

One JSON line for each turn: seconds from the last slice to results that are written and verified, `unstreamed` being
the same work begun at that moment; how many windows had run and how many label planes were final when so many slices
had come; `planes_ready`: how many were, so many seconds after the first slice. At the end the medians, the ratio, and
the load of the machine, which is what such times mean little without.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import plots
import pydicom
import torch
from pydicom import Dataset
from pydicom.uid import UID

from medseg.inference.engines.device import steady_batch
from medseg.inference.engines.engine import Engine
from medseg.inference.segment import NETWORKS
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.follow import follow
from medseg.job.plan import plan
from medseg.job.run import run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from medseg.bundle.bundle import Bundle  # noqa: E402 - found from the checkout
from medseg.bundle.load import load_bundle  # noqa: E402
from medseg.dicom.instance import Instance, Slice  # noqa: E402
from medseg.dicom.phantom import make_series  # noqa: E402
from medseg.dicom.series import Series  # noqa: E402
from medseg.dicom.slices import expand  # noqa: E402
from medseg.dicom.sources import find_instances, to_series  # noqa: E402
from medseg.progress import Progress, Stage  # noqa: E402
from tests.medseg.bundle import zoo  # noqa: E402

SETTINGS = Settings(device="cpu")
FORMATS = frozenset({Format.SEG, Format.SR})
STEP_MM = 1.6


def make_bundle(folder: Path, channels: list[int]) -> Bundle:
    """The network of spleen_ct_segmentation, with random weights whose labels do not flicker."""
    zoo.spleen_like(folder, window=(96, 96, 96))

    def grow(config: dict[str, Any]) -> None:
        config["network_def"] |= {"channels": channels, "strides": [2] * (len(channels) - 1)}
        config["inferer"] |= {"mode": "gaussian"}
        torch.save(zoo.random_state(config["network_def"], 0, smooth=True), folder / "models/model.pt")

    zoo.rewrite(folder, grow)
    return load_bundle(folder)


def find_engine(bundle: Bundle, cache: Path) -> None:
    """Let engines race, as `medseg bench engines` does, so that no job that is measured has to; this process, and those
    that it starts, find the verdict in `cache`."""
    os.environ["MEDSEG_CACHE"] = str(cache)
    noise = torch.rand(1, 1, *bundle.recipe.window.roi, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    Engine(NETWORKS.get(bundle, cpu), bundle, cpu, batch=steady_batch(bundle.recipe.window.batch)).race(noise)


def make_study(folder: Path, data: Path | None, slices: int) -> list[Instance]:
    """The CT there and back again, from the feet up."""
    write_mirrored(folder, originals(data), slices, STEP_MM)
    return sorted(find_instances(folder).instances, key=lambda one: one.name)


def write_mirrored(folder: Path, once: Sequence[Dataset], slices: int, step_mm: float, number: int = 0) -> None:
    """Axial slices, `step_mm` apart, there and back again until there are so many. number: of the series in a study."""
    folder.mkdir()
    for k, source in enumerate(islice(cycle([*once, *reversed(once)]), slices)):
        uid = UID(f"1.2.826.0.1.3680043.8.498.7.{number * 100_000 + k + 1}")
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = uid
        source.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.8"
        source.ImagePositionPatient = [*source.ImagePositionPatient[:2], f"{step_mm * k:.1f}"]
        source.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        source.save_as(folder / f"{k:04}.dcm", enforce_file_format=True)


def originals(data: Path | None) -> list[Dataset]:
    if data is None:
        return make_series(shape=(119, 512, 512), spacing_mm=(STEP_MM, 0.743, 0.743))
    found = [pydicom.dcmread(one.open()) for one in find_instances(data).instances]
    return sorted(found, key=lambda one: float(one.ImagePositionPatient[2]))


class Paced:
    """Slices at a pace, from the moment they are first asked for."""

    def __init__(self, instances: Sequence[Instance], rate: float) -> None:
        self.instances, self.rate = instances, rate
        self.expected = len(instances)
        self.began_s = 0.0

    @property
    def series(self) -> Series:
        return to_series(self.instances)

    def arrived(self) -> int:
        return min(int((time.monotonic() - self.began_s) * self.rate) + 1, len(self.instances))

    @property
    def last_s(self) -> float:
        return self.began_s + (len(self.instances) - 1) / self.rate

    def __iter__(self) -> Iterator[Slice | None]:
        self.began_s = time.monotonic()
        for k, instance in enumerate(self.instances):
            while self.arrived() <= k:
                yield None
                time.sleep(0.01)
            yield from expand(instance)


class Ready:
    """How many label planes are there, and since when."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.seen = [(0.0, 0)]

    def __call__(self, event: Progress) -> None:
        if event.stage is Stage.RESTORE and event.done > self.seen[-1][1]:
            self.seen.append((round(time.monotonic() - self.since_s, 2), event.done))

    def some(self) -> list[tuple[float, int]]:
        return self.seen[:: max(len(self.seen) // 40, 1)] + self.seen[-1:]


def streamed(bundle: Bundle, instances: Sequence[Instance], rate: float, out: Path) -> dict[str, Any]:
    source = Paced(instances, rate)
    progress: dict[str, list[tuple[int, int]]] = {"windows": [], "planes": []}
    ready = Ready(0.0)
    kinds = {Stage.INFER: "windows", Stage.RESTORE: "planes"}

    def report(event: Progress) -> None:
        if event.stage in kinds and event.done:
            progress[kinds[event.stage]].append((source.arrived(), event.done))
        ready.since_s = source.began_s
        ready(event)

    done = follow(source, [bundle], explicit=True, settings=SETTINGS, on_progress=report)
    computed_s = time.monotonic()
    (job,) = done.plan.jobs
    outcome = run(job, out, FORMATS, settings=SETTINGS, found=done.found, digest=done.digest)
    shares = [round(share * len(instances)) for share in (0.25, 0.5, 0.75)]
    return {
        "after_last_slice_s": round(time.monotonic() - source.last_s, 2),
        "of_which_writing_s": round(time.monotonic() - computed_s, 2),
        "streamed": outcome.record["streamed"],
        "why_not": outcome.record["streamed_reason"],
        "first_planes_at_slice": progress["planes"][0][0] if progress["planes"] else None,
        **{
            f"{kind}_by_slice": {str(k): max((done for at, done in seen if at <= k), default=0) for k in shares}
            for kind, seen in progress.items()
        },
        "planes_ready": ready.some(),
        "peak_rss_mb": outcome.record["peak_rss_mb"],
    }


def unstreamed(bundle: Bundle, instances: Sequence[Instance], out: Path) -> dict[str, Any]:
    begin = time.monotonic()
    ready = Ready(begin)
    (job,) = plan([to_series(instances)], [bundle], explicit=True).jobs
    outcome = run(job, out, FORMATS, settings=SETTINGS, on_progress=ready)
    seconds = round(time.monotonic() - begin, 2)
    return {"after_last_slice_s": seconds, "timings_s": outcome.record["timings_s"], "planes_ready": ready.some()}


def plot(measured: Path, picture: Path) -> None:
    """Of the first turn of each way; the slices themselves, and the unstreamed way, begun with the last."""
    turns: dict[str, dict[str, Any]] = {}
    for row in map(json.loads, measured.read_text("utf-8").splitlines()):
        turns.setdefault(row.get("way", ""), row)
    last_s = (turns["unstreamed"]["slices"] - 1) / turns["unstreamed"]["rate"]
    drawn = {way: turn["planes_ready"] for way, turn in turns.items() if "planes_ready" in turn}
    begun = [(last_s + seconds, planes) for seconds, planes in drawn.pop("unstreamed")]
    drawn = {"slices": [(0.0, 1.0), (last_s, float(turns["unstreamed"]["slices"]))], **drawn, "all, then begun": begun}
    picture.write_text(plots.lines("Label planes ready", "s after the first slice", "planes", drawn))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--slices", type=int, default=476)
    options.add_argument("--rate", type=float, default=10.0, help="slices per second")
    options.add_argument("--orders", default="ascending", help="comma-separated: ascending, descending, shuffled")
    options.add_argument("--channels", default="16,32,64,128,256", help="of the UNet, level by level")
    options.add_argument("--data", type=Path)
    options.add_argument("--plot", nargs=2, type=Path, metavar=("LINES", "SVG"), help="draw what was measured")
    chosen = options.parse_args()
    if chosen.plot:
        plot(*chosen.plot)
        return
    orders = chosen.orders.split(",")
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = make_bundle(work / "spleen", [int(width) for width in chosen.channels.split(",")])
        instances = make_study(work / "study", chosen.data, chosen.slices)
        find_engine(bundle, work / "cache")
        ways = {
            "ascending": instances,
            "descending": instances[::-1],
            "shuffled": random.Random(0).sample(instances, len(instances)),
        }
        for turn in range(chosen.rounds):
            for way in ["unstreamed", *orders]:
                out = work / f"{way} {turn}"
                load = round(os.getloadavg()[0], 1)
                if way == "unstreamed":
                    found = unstreamed(bundle, instances, out)
                else:
                    found = streamed(bundle, ways[way], chosen.rate, out)
                times.setdefault(way, []).append(found["after_last_slice_s"])
                facts = {"way": way, "slices": chosen.slices, "rate": chosen.rate, "load": load}
                print(json.dumps(facts | found), flush=True)
    base = statistics.median(times["unstreamed"])
    for way, seconds in times.items():
        median = statistics.median(seconds)
        print(json.dumps({"way": way, "median_s": round(median, 2), "of_unstreamed": round(median / base, 3)}))
    print(json.dumps({"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
