"""What a lower precision changes in the results of a bundle: its labels against those in fp32, case by case.

    python benchmarks/precision.py --data hippocampus_t1_unet3d=DIR [--data NAME=DIR ...] [--precision bf16]
                                   [--cases N] [--engine torch] > precision.jsonl

Cases are those that training set aside, in the layout of `medseg evaluate --data`. A bundle may name a precision
(`precisions` in its metadata) where every case keeps a foreground Dice of at least 0.999 to fp32, mean over its
segments, and the number of pieces of each segment; a case where both find nothing of a segment counts as 1.

A JSON line for each case: Dice and pieces by segment, seconds of inference in both precisions. At the end of a bundle
the least and the mean Dice, the cases with other pieces, the ratio of the times, and whether the bundle may name it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.dicom.series import StackSource
from medseg.inference.segment import segment
from medseg.inference.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np  # noqa: E402

from medseg.bundle.bundle import Bundle, Segment  # noqa: E402 - found from the checkout
from medseg.bundle.catalog import find_bundle  # noqa: E402
from medseg.dicom.nifti import read_nifti  # noqa: E402
from medseg.dicom.series import Stack  # noqa: E402
from medseg.inference.labels import LabelPlane  # noqa: E402
from medseg.training.data import find_cases, split  # noqa: E402
from medseg.training.plan import read_plan  # noqa: E402

LEAST_DICE = 0.999


class Kept:
    """A sink that keeps the label planes."""

    def begin(self, _stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        self.numbers, self.exclusive = [one.number for one in segments], exclusive
        self.planes: list[np.ndarray] = []

    def plane(self, _k: int, labels: LabelPlane) -> None:
        self.planes.append(labels.copy())

    def end(self) -> None: ...

    def masks(self) -> list[np.ndarray]:
        """A mask per segment."""
        volume = np.stack(self.planes)
        if self.exclusive:
            return [volume == number for number in self.numbers]
        return [volume[:, n].astype(bool) for n in range(len(self.numbers))]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    both = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / both if both else 1.0


def compare(bundle: Bundle, image: Path, precision: str, engine: str) -> dict[str, Any]:
    found = []
    for which in ("fp32", precision):
        sink = Kept()
        settings = Settings(precision=which, engine=engine)
        result = segment(StackSource(read_nifti(image)), bundle, sink, settings=settings)
        found.append((sink.masks(), result))
    (plain, plain_result), (low, low_result) = found
    names = [one.label for one in bundle.segments]
    pieces = {
        name: [one.components, other.components]
        for name, one, other in zip(names, plain_result.measured, low_result.measured, strict=True)
    }
    return {
        "dice": {name: round(dice(one, other), 6) for name, one, other in zip(names, plain, low, strict=True)},
        "pieces": pieces,
        "infer_s": [plain_result.timings_s["infer"], low_result.timings_s["infer"]],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", action="append", required=True, metavar="BUNDLE=DIR")
    options.add_argument("--precision", default="bf16")
    options.add_argument("--cases", type=int, help="no more than so many of each")
    options.add_argument("--engine", default="torch")
    chosen = options.parse_args()
    for pair in chosen.data:
        name, _, folder = pair.partition("=")
        bundle = find_bundle(name)
        bundle = replace(bundle, precisions=("fp32", chosen.precision))  # to be found out
        _, cases = split(find_cases(Path(folder)), read_plan(bundle.path).held_out)
        rows = []
        for case in cases[: chosen.cases]:
            row = compare(bundle, case.image, chosen.precision, chosen.engine)
            print(json.dumps({"bundle": name, "precision": chosen.precision, "case": case.id} | row), flush=True)
            rows.append(row)
        means = [statistics.mean(row["dice"].values()) for row in rows]
        other = sum(any(one != two for one, two in row["pieces"].values()) for row in rows)
        ratio = statistics.median(row["infer_s"][0] / row["infer_s"][1] for row in rows)
        summary = {
            "bundle": name,
            "precision": chosen.precision,
            "cases": len(rows),
            "least_dice": round(min(means), 6),
            "mean_dice": round(statistics.mean(means), 6),
            "cases_with_other_pieces": other,
            "times_fp32": round(ratio, 2),
            "may_be_named": min(means) >= LEAST_DICE and other == 0,
        }
        print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
