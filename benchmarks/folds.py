"""A bundle's plan in cross-validation: each case is scored by weights that never saw it.

    python benchmarks/folds.py BUNDLE --data DIR --work build/folds [--folds 5] > scores.csv

Fold r sets aside the cases whose id hashes to r modulo the number of folds, and learns from the others, as `medseg
train` does with that `held_out` in the plan; it is scored as by `medseg evaluate`. Rows of all folds together come out
as CSV, with their summaries; each fold's bundle, record and curves stay in the work folder. A run that was stopped goes
on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from medseg.bundle.load import load_bundle  # noqa: E402 - found from the checkout
from medseg.bundle.network import build_network  # noqa: E402
from medseg.training.evaluate import Evaluation, evaluate, summaries, write_csv  # noqa: E402
from medseg.training.fit import TrainingProgress  # noqa: E402
from medseg.training.plan import CONFIG  # noqa: E402
from medseg.training.scores import Score  # noqa: E402
from medseg.training.train import RECORD, plan_of, train  # noqa: E402

TELL_EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    given = parser.parse_args()
    scores: dict[str, dict[str, Score]] = {}
    for fold in range(given.folds):
        trained = learnt(given.bundle, given.data, given.work / str(fold), {"modulus": given.folds, "remainder": fold})
        scores |= {case: dict(by_name) for case, by_name in evaluate(load_bundle(trained), given.data).cases.items()}
    scores = dict(sorted(scores.items()))
    names = next(iter(scores.values()))
    write_csv(Evaluation(scores, {name: summaries(scores, name) for name in names}), sys.stdout)


def learnt(bundle: Path, data: Path, work: Path, held_out: dict[str, int]) -> Path:
    """The bundle of one fold, with weights."""
    out = work / bundle.resolve().name
    if (out / RECORD).is_file():
        return out
    plain = work / "plan" / out.name
    shutil.copytree(bundle / "configs", plain / "configs", dirs_exist_ok=True)
    plan = json.loads((plain / CONFIG).read_text())
    (plain / CONFIG).write_text(json.dumps(plan | {"held_out": held_out}, indent=4) + "\n")
    loaded = load_bundle(plain, trained=False)
    torch.manual_seed(plan["seed"])
    train(loaded, data, build_network(loaded), plan_of(loaded), out=out, resume=True, on_step=tell)
    return out


def tell(progress: TrainingProgress) -> None:
    if progress.step % TELL_EVERY == 0:
        print(f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
