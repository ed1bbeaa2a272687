"""A small network learns a phantom, and a training that was stopped ends in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from medseg.bundle.recipe import ScaleMinMax
from medseg.errors import Interrupted, InvalidBundle
from medseg.training.batches import case_of, make_batch
from medseg.training.fit import ForeignCheckpoint, Trained, TrainingProgress, choose_precision, fit
from medseg.training.plan import Precision, TrainingPlan, make_plan
from medseg.training.prepare import Sample, intensity

CONFIG = {
    "seed": 7,
    "steps": 12,
    "batch_size": 2,
    "window": [16, 16, 16],
    "checkpoint_every": 5,
    "precision": "fp32",
    "ema_decay": 0.8,
    "warmup_steps": 3,
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "optimizer": {"_target_": "AdamW", "lr": 0.01},
    "augment": {
        "flip_axes": [0],
        "rotation_degrees": 10,
        "shift_voxels": 2,
        "field_of_view": [0.8, 1.0],
        "noise": 0.05,
    },
}
PREPARE = intensity([ScaleMinMax()])


def plan(**changes: object) -> TrainingPlan:
    return make_plan(CONFIG | changes)


def network(dims: int = 3, dropout: float = 0.0) -> UNet:
    torch.manual_seed(0)
    return UNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=2,
        channels=(4, 8),
        strides=(2,),
        num_res_units=1,
        norm="INSTANCE",
        dropout=dropout,
    )


def phantoms(dims: int = 3) -> list[Sample]:
    """Bright blocks of several places on a noisy ground."""
    g, samples = torch.Generator().manual_seed(1), []
    for n in range(5):
        label = torch.zeros([16] * dims, dtype=torch.uint8)
        label[(slice(3 + n, 9 + n), slice(4, 12), slice(5, 11))[:dims]] = 1
        image = label[None].float() * 300 + 100 * torch.rand(label[None].shape, generator=g)
        samples.append(Sample(image, label))
    return samples


def trained(**options: object) -> Trained:
    changes, dropout = options.pop("plan", {}), options.pop("dropout", 0.0)
    assert isinstance(changes, dict)
    assert isinstance(dropout, float)
    return fit(network(dropout=dropout), phantoms(), 2, PREPARE, plan(**changes), **options)  # type: ignore[arg-type]


def weights(result: Trained) -> dict[str, torch.Tensor]:
    return dict(result.network.state_dict())


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.parametrize("dims", [2, 3])
def test_learns(dims: int) -> None:
    losses: list[TrainingProgress] = []
    small = plan(steps=40, window=[16] * dims)
    result = fit(network(dims), phantoms(dims), 2, PREPARE, small, on_step=losses.append)
    assert [event.step for event in losses] == list(range(1, 41))
    assert result.loss < 0.7 * losses[0].loss
    sample = phantoms(dims)[2]
    with torch.no_grad():
        found = result.network.eval()(PREPARE(sample.image)[None])[0].argmax(0)
    overlap = 2 * ((found == 1) & (sample.label == 1)).sum() / ((found == 1).sum() + (sample.label == 1).sum())
    assert overlap > 0.8


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stopped_and_taken_up_is_bit_equal(tmp_path: Path, dropout: float) -> None:
    unbroken = trained(dropout=dropout)
    for stop_after in (3, 9):  # before the first regular checkpoint, and after it
        checkpoint, seen = tmp_path / f"{stop_after}.pt", []
        with pytest.raises(Interrupted):
            stop = {"cancelled": lambda n=stop_after, s=seen: len(s) >= n}
            trained(checkpoint=checkpoint, on_step=seen.append, dropout=dropout, **stop)
        again: list[TrainingProgress] = []
        result = trained(checkpoint=checkpoint, on_step=again.append, dropout=dropout)
        assert again[0].step == stop_after + 1
        assert same(result, unbroken)
        assert result.loss == unbroken.loss


def test_a_kill_goes_back_to_the_last_regular_checkpoint(tmp_path: Path) -> None:
    def die(event: TrainingProgress) -> None:
        if event.step == 8:
            raise MemoryError

    checkpoint, again = tmp_path / "c.pt", []
    with pytest.raises(MemoryError):
        trained(checkpoint=checkpoint, on_step=die)
    result = trained(checkpoint=checkpoint, on_step=again.append)
    assert again[0].step == 6
    assert same(result, trained())


def test_same_seed_same_weights_other_seed_others() -> None:
    assert same(trained(), trained())
    assert not same(trained(), trained(plan={"seed": 8}))


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(checkpoint=tmp_path / "c.pt", fingerprint="a", cancelled=lambda: True)
    with pytest.raises(ForeignCheckpoint):
        trained(checkpoint=tmp_path / "c.pt", fingerprint="b")


def test_every_case_once_an_epoch_in_changing_order() -> None:
    epochs = [[case_of(n, 7, plan()) for n in range(e * 7, e * 7 + 7)] for e in range(3)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert epochs[0] != epochs[1]


def test_batches_depend_on_the_step_alone() -> None:
    a, b = (make_batch(phantoms(), 2, PREPARE, plan(), 4) for _ in range(2))
    other = make_batch(phantoms(), 2, PREPARE, plan(), 5)
    assert a[0].shape == a[1].shape == (2, 1, 16, 16, 16)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], other[0])


def test_precision_auto_is_one_of_the_two() -> None:
    assert choose_precision(Precision.AUTO, torch.device("cpu")) in {Precision.FP32, Precision.BF16}
    assert choose_precision(Precision.BF16, torch.device("cpu")) is Precision.BF16


def test_bf16_learns() -> None:
    losses: list[TrainingProgress] = []
    result = trained(plan={"precision": "bf16", "steps": 30}, on_step=losses.append)
    assert result.loss < losses[0].loss
    assert all(w.dtype == torch.float32 for w in weights(result).values())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"epochs": 3}, "epochs"),
        ({"loss": {"_target_": "os.system"}}, "loss._target_"),
        ({"optimizer": {"_target_": "torch.hub.load", "lr": 1}}, "optimizer._target_"),
        ({"optimizer": {"_target_": "SGD"}}, "optimizer.lr"),
        ({"augment": {"rotate": 1}}, "augment.rotate"),
        ({"augment": 3}, "augment"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_a_bad_plan_is_refused_by_key(change: dict[str, object], key: str) -> None:
    with pytest.raises(InvalidBundle, match=key):
        make_plan(CONFIG | change, "some")


@pytest.mark.parametrize("key", ["seed", "steps", "window", "loss"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(InvalidBundle, match=f"{key}: expected .*, found nothing"):
        make_plan({k: v for k, v in CONFIG.items() if k != key}, "some")


def test_classes_have_the_weights_that_the_plan_gives_them() -> None:
    loss = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "lambda_dice": 0.0}
    scores, labels = torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(0)), torch.zeros((1, 1, 4, 4))
    labels[..., :2] = 2
    weighted = make_plan(CONFIG | {"loss": loss | {"weight": [0.02, 1.0, 1.0]}}).make_loss()(scores, labels)
    each = -scores.log_softmax(1)
    expected = (0.02 * each[:, 0, :, 2:].sum() + each[:, 2, :, :2].sum()) / (0.02 * 8 + 8)
    assert float(weighted) == pytest.approx(float(expected), rel=1e-5)
