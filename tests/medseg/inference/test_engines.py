"""Engines: what the race takes and drops, what is kept of it, and that each computes what torch computes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, current_thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.dicom.series import StackSource
from medseg.errors import Interrupted, UsageError
from medseg.inference.engines import cache as shelving
from medseg.inference.engines import selection as racing
from medseg.inference.engines.backends import BACKENDS, made
from medseg.inference.engines.case import BackEnd, Case, Run, eager
from medseg.inference.engines.engine import Engine
from medseg.inference.engines.openvino import OwnThreads
from medseg.inference.engines.selection import ENGINES, RaceResult, choose, worth
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference.phantoms import Collected, blobs, make_bundle, make_stack

CPU = torch.device("cpu")
WINDOWS = torch.rand(3, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))


def small_case(precision: str = "fp32") -> Case:
    torch.manual_seed(0)
    return Case(nn.Conv3d(1, 3, 3, padding=1).eval(), CPU, precision, (1, 6, 6, 6), 3, "digest")


def labels(scores: Tensor) -> Tensor:
    return scores.argmax(1)


class Stable:
    """Back-ends that do what torch does, but for what is asked of them; how often each was made and loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.loaded: list[str] = []
        self.seconds = {"torch": 1.0}
        monkeypatch.setattr(racing, "_times", lambda case, runs, *_: {name: self.seconds[name] for name in runs})
        monkeypatch.setattr(racing, "_LOADED", racing._Loaded())
        for name in [*BACKENDS]:
            if name != "torch":
                monkeypatch.delitem(BACKENDS, name)
        self._patch = monkeypatch

    def add(
        self,
        name: str,
        seconds: float,
        *,
        off: float = 0.0,
        fails: Exception | None = None,
        cost_s: float = 0.0,
        waits: Event | None = None,
    ) -> None:
        """off: added to the scores of the first class. waits: for this, while it is made."""

        def make(case: Case, folder: Path) -> None:
            self.made.append(name)
            assert waits is None or waits.wait(60)
            if fails is not None:
                raise fails
            (folder / "weights").write_text("weights")

        def load(case: Case, folder: Path) -> Run:
            self.loaded.append(name)
            return lambda windows: eager(case)(windows) + off * torch.eye(3)[0].reshape(3, 1, 1, 1)

        self.seconds[name] = seconds
        self._patch.setitem(BACKENDS, name, BackEnd(name, cost_s, lambda *_: None, make, load))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> Stable:
    return Stable(monkeypatch)


def chosen(case: Case, wanted: str = "auto", expected: int = 1_000_000) -> tuple[str, list[str]]:
    warnings: list[str] = []
    found = choose(wanted, case, WINDOWS, labels, expected=expected, warn=warnings.append, waiting=lambda: None)
    assert torch.allclose(found.run(WINDOWS).float(), eager(case)(WINDOWS).float(), atol=1e-3)
    return found.engine, warnings


# ---- the race


def test_the_fastest_that_agrees_is_taken_and_what_does_not_is_said(stable: Stable) -> None:
    stable.add("openvino", 0.5)
    stable.add("wrong", 0.1, off=0.01)
    stable.add("broken", 0.1, fails=RuntimeError("operator aten::what is not known"))
    stable.add("compile", 0.8)
    engine, warnings = chosen(small_case())
    assert engine == "openvino"
    assert len(warnings) == 2
    assert any("wrong" in said and "of their scale" in said for said in warnings)
    assert any("broken" in said and "RuntimeError" in said for said in warnings)


def test_a_race_runs_as_many_windows_at_once_as_jobs_do(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    stable.add("openvino", 0.5)

    def load(case: Case, folder: Path) -> Run:
        def run(windows: Tensor) -> Tensor:
            ran.append(len(windows))
            return eager(case)(windows)

        return run

    monkeypatch.setitem(BACKENDS, "openvino", replace(BACKENDS["openvino"], load=load))
    case = small_case()
    racing.race("auto", case, WINDOWS[:1], labels, [BACKENDS["openvino"]])
    assert set(ran) == {case.batch}


def test_torch_stays_where_another_is_hardly_faster(stable: Stable) -> None:
    stable.add("openvino", 0.97)
    assert chosen(small_case()) == ("torch", [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_do_not_agree(value: float, stable: Stable) -> None:
    stable.add("openvino", 0.5, off=value)
    engine, warnings = chosen(small_case())
    assert (engine, len(warnings)) == ("torch", 1)


def test_lower_precisions_are_held_against_labels_in_fp32(stable: Stable) -> None:
    stable.add("openvino", 0.5, off=0.0)
    stable.add("wrong", 0.1, off=10.0)
    engine, warnings = chosen(small_case("bf16"))
    assert engine == "openvino"
    assert len(warnings) == 1
    assert "of its labels" in warnings[0]


def test_a_verdict_holds_from_then_on_whatever_the_length_of_the_job(stable: Stable) -> None:
    stable.add("openvino", 0.5)
    assert chosen(small_case())[0] == "openvino"
    assert chosen(small_case(), expected=1)[0] == "openvino"
    assert stable.made == ["openvino"]
    assert chosen(small_case("bf16"))[0] == "openvino"  # another question
    assert stable.made == ["openvino"] * 2


def test_a_short_job_does_not_wait_for_a_race_nor_compute_twice(stable: Stable) -> None:
    stable.add("openvino", 0.5, cost_s=1e6)
    case, calls = small_case(), []
    case.network.register_forward_hook(lambda *_: calls.append(1))
    found = choose("auto", case, WINDOWS, labels, expected=100, warn=pytest.fail, waiting=lambda: None)
    assert found.engine == "torch"
    assert found.scores is not None
    assert calls == [1]
    assert torch.equal(found.scores, eager(case)(WINDOWS))
    assert stable.made == []


def test_short_jobs_pay_for_a_race_together(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    stable.add("openvino", 0.5)
    monkeypatch.setattr(racing, "worth", lambda here, windows, _: here if windows > 1000 else [])
    assert [chosen(small_case(), expected=400)[0] for _ in range(4)] == ["torch", "torch", "openvino", "openvino"]
    assert stable.made == ["openvino"]
    assert chosen(small_case("bf16"), expected=400)[0] == "torch"  # another question


def test_a_longer_job_lets_the_slow_to_make_join(stable: Stable) -> None:
    stable.add("openvino", 0.5)
    stable.add("compile", 0.1, cost_s=500.0)
    assert chosen(small_case(), expected=500)[0] == "openvino"
    assert chosen(small_case(), expected=500)[0] == "openvino"
    assert stable.made == ["openvino"]
    assert chosen(small_case(), expected=2000)[0] == "compile"
    assert chosen(small_case(), expected=1)[0] == "compile"
    assert stable.made == ["openvino", "openvino", "compile"]


@given(st.lists(st.floats(0, 100), max_size=5), st.integers(0, 10_000), st.floats(1e-3, 10))
def test_those_worth_it_cost_less_than_the_job(costs: list[float], expected: int, window_s: float) -> None:
    here = [
        BackEnd(str(n), cost, lambda *_: None, lambda *_: None, lambda *_: pytest.fail())
        for n, cost in enumerate(sorted(costs))
    ]
    taken = worth(here, expected, window_s)
    assert taken == here[: len(taken)]  # the cheapest first
    assert not taken or sum(one.cost_s for one in taken) < expected * window_s
    assert len(worth(here, expected + 1, window_s)) >= len(taken)


def test_a_job_can_be_stopped_while_an_engine_is_made(stable: Stable) -> None:
    asked = Event()
    stable.add("openvino", 0.5, waits=asked)

    def stop() -> None:
        asked.set()
        raise Interrupted

    with pytest.raises(Interrupted):
        choose("auto", small_case(), WINDOWS, labels, expected=10**6, warn=pytest.fail, waiting=stop)
    assert asked.is_set()


# ---- one engine by name


def test_a_named_engine_is_taken_however_slow_and_kept(stable: Stable) -> None:
    stable.add("openvino", 5.0)
    assert chosen(small_case(), "openvino", expected=1) == ("openvino", [])
    assert chosen(small_case(), "openvino", expected=1) == ("openvino", [])
    assert stable.made == ["openvino"]


def test_a_named_engine_that_disagrees_gives_way_to_torch_each_time(stable: Stable) -> None:
    stable.add("openvino", 0.1, off=0.01)
    for _ in range(2):
        engine, warnings = chosen(small_case(), "openvino")
        assert engine == "torch"
        assert len(warnings) == 1
    assert stable.made == ["openvino"]


def test_the_environment_says_what_is_taken_where_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_ENGINE", "openvino")
    assert (Settings().engine, Settings(engine="torch").engine) == ("openvino", "torch")
    monkeypatch.delenv("MEDSEG_ENGINE")
    assert Settings().engine == "auto"


def test_engines_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such engine"):
        Settings(engine="abacus")
    bundle, stack = make_bundle(tmp_path), make_stack(blobs((12, 16, 16)))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="CUDA"):
            segment(StackSource(stack), bundle, Collected(), settings=Settings(engine="tensorrt"))
    assert set(ENGINES) == {"auto", "torch", "compile", "openvino", "tensorrt"}


# ---- what is kept


def damage_json(folder: Path) -> None:
    (folder / "auto.json").write_text('{"chosen": "openvino", "entries": [')


def damage_meaning(folder: Path) -> None:
    (folder / "auto.json").write_text('{"chosen": "openvino", "entries": [{"engine": "abacus"}]}')


def take_away(folder: Path) -> None:
    (folder / "auto.json").unlink()


@pytest.mark.parametrize("harm", [damage_json, damage_meaning, take_away])
def test_a_damaged_verdict_is_as_if_it_were_not_there(harm: Callable[[Path], object], stable: Stable) -> None:
    stable.add("openvino", 0.5)
    chosen(small_case())
    harm(shelving.EngineCache(small_case()).folder)
    assert chosen(small_case()) == ("openvino", [])
    assert stable.made == ["openvino"] * 2


def test_a_damaged_engine_is_not_run_but_made_anew_next_time(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    stable.add("openvino", 0.5)
    chosen(small_case())
    folder = shelving.EngineCache(small_case()).folder
    (weights,) = folder.glob("openvino-*/weights")
    weights.write_text("weightz")
    monkeypatch.setattr(racing, "_LOADED", racing._Loaded())  # another process
    engine, warnings = chosen(small_case())
    assert engine == "torch"
    assert "cannot be loaded" in warnings[0]
    assert chosen(small_case()) == ("openvino", [])


def test_what_loses_is_thrown_away(stable: Stable) -> None:
    stable.add("openvino", 0.5)
    stable.add("compile", 0.7)
    chosen(small_case())
    folder = shelving.EngineCache(small_case()).folder
    assert [path.name.split("-")[0] for path in folder.iterdir() if path.is_dir()] == ["openvino"]
    told = json.loads((folder / "auto.json").read_text())
    assert RaceResult.of(told) is not None
    assert {one["engine"]: one["window_s"] for one in told["entries"]} == {"torch": 1, "openvino": 0.5, "compile": 0.7}


def test_only_the_cases_asked_for_last_are_kept(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelving, "MOST_CASES", 2)
    stable.add("openvino", 0.5)
    cases = [replace(small_case(), digest=str(n)) for n in range(3)]
    for n, case in enumerate(cases):
        chosen(case)
        os.utime(shelving.EngineCache(case).folder, (n, n))
    assert [shelving.EngineCache(case).folder.exists() for case in cases] == [False, True, True]


def test_what_no_answer_names_goes_after_a_day(stable: Stable) -> None:
    stable.add("openvino", 0.5)
    case = small_case()
    kept = shelving.EngineCache(case)
    left, making = kept.room("compile"), kept.room("openvino")
    os.utime(left, (0, 0))
    chosen(case)
    assert making.exists() and not left.exists()
    (winner,) = (one for one in kept.folder.iterdir() if one.is_dir() and one != making)
    os.utime(winner, (0, 0))
    kept.count(1)
    assert winner.exists()


class Gated(nn.Module):
    """A network that an export stops in."""

    inside, leave = Event(), Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)

    def forward(self, windows: Tensor) -> Tensor:
        if current_thread().name == "export":
            self.inside.set()
            self.leave.wait(60)
        scores: Tensor = self.layer(windows)
        return scores


def test_a_network_computes_while_an_engine_is_made_of_it(tmp_path: Path) -> None:
    """As where a job gave up waiting for its engine, and the next one runs the same network."""
    case = replace(small_case(), network=Gated().eval())
    before = eager(case)(WINDOWS)

    def make(case: Case, _: Path) -> None:
        torch.export.export(case.network, (case.example(),))

    backend = BackEnd("exported", 0, lambda *_: None, make, lambda case, _: eager(case))
    thread = Thread(target=lambda: made(case, backend, tmp_path), name="export")
    thread.start()
    assert Gated.inside.wait(60)
    try:
        during = eager(case)(WINDOWS)
        assert type(during) is Tensor
        assert torch.equal(during, before)
    finally:
        Gated.leave.set()
        thread.join()


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, stable: Stable) -> None:
    (tmp_path / "cache/engines").mkdir(parents=True)
    (tmp_path / "cache/engines").chmod(0o777)
    stable.add("openvino", 0.5)
    assert chosen(small_case()) == ("openvino", [])
    assert chosen(small_case()) == ("openvino", [])
    assert stable.made == ["openvino"]  # kept for the process
    assert not any((tmp_path / "cache/engines").iterdir())


def test_a_cache_that_cannot_be_made_costs_nothing_but_the_race(tmp_path: Path, stable: Stable) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    stable.add("openvino", 0.5)
    assert chosen(small_case()) == ("openvino", [])


@pytest.mark.parametrize("change", [{"digest": "other"}, {"precision": "bf16"}, {"shape": (1, 8, 6, 6)}], ids=str)
def test_what_changes_the_answer_changes_the_key(change: dict[str, object]) -> None:
    assert shelving.key(small_case()) == shelving.key(small_case())
    assert shelving.key(replace(small_case(), **change)) != shelving.key(small_case())
    assert shelving.key(replace(small_case(), batch=2)) == shelving.key(small_case())  # on a CPU, one at a time


# ---- in the pipeline


def test_an_engine_that_fails_while_it_runs_gives_way_to_torch(
    stable: Stable, tmp_path: Path, two_threads: None
) -> None:
    """While it runs, torch has one thread beside it; afterwards, and instead of it, two again."""
    bundle, stack = make_bundle(tmp_path), make_stack(blobs((20, 24, 24)))
    calls: list[int] = []

    def load(case: Case, _: Path) -> Run:
        def run(windows: Tensor) -> Tensor:
            calls.append(torch.get_num_threads())
            if len(calls) > 2:
                raise RuntimeError("the device was taken away")
            return eager(case)(windows)

        return run

    stable.add("openvino", 0.5)
    BACKENDS["openvino"] = replace(BACKENDS["openvino"], load=load)
    plain, there = Collected(), Collected()
    segment(StackSource(stack), bundle, plain, settings=Settings(engine="torch"))
    result = segment(StackSource(stack), bundle, there, settings=Settings(engine="openvino"))
    assert (plain.labels == there.labels).all()
    assert result.engine == "torch"
    assert [said for said in result.warnings if "going on with torch" in said]
    assert calls == [2, 1, 1]  # in its race, then in the job
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("where", ["begun", "on its way"])
def test_an_engine_that_fails_with_windows_on_their_way_gives_way_to_torch(
    where: str, stable: Stable, tmp_path: Path
) -> None:
    bundle, stack = make_bundle(tmp_path), make_stack(blobs((40, 24, 24)))
    begun: list[Tensor] = []

    class TakenAway(OwnThreads):
        def __init__(self, case: Case) -> None:
            self.case = case

        def __call__(self, windows: Tensor) -> Tensor:
            return eager(self.case)(windows)

        def begin(self, window: Tensor) -> Callable[[], Tensor]:
            begun.append(window)
            fails = len(begun) > 5
            if fails and where == "begun":
                raise RuntimeError("the device was taken away")

            def answer() -> Tensor:
                if fails:
                    raise RuntimeError("the device was taken away")
                return self(window.expand(2, *window.shape[1:]))[:1]

            return answer

    stable.add("openvino", 0.5)
    BACKENDS["openvino"] = replace(BACKENDS["openvino"], load=lambda case, _: TakenAway(case))
    plain, there = Collected(), Collected()
    segment(StackSource(stack), bundle, plain, settings=Settings(engine="torch"))
    result = segment(StackSource(stack), bundle, there, settings=Settings(engine="openvino"))
    assert len(begun) > 5
    assert (plain.labels == there.labels).all()
    assert result.engine == "torch"
    assert len([said for said in result.warnings if "going on with torch" in said]) == 1


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_auto_does_a_short_job_by_torch(tmp_path: Path) -> None:
    stack, settings = make_stack(blobs((12, 16, 16))), Settings(engine="auto")
    assert segment(StackSource(stack), make_bundle(tmp_path), Collected(), settings=settings).engine == "torch"
    assert not list(tmp_path.glob("cache/engines/*/auto.json"))


def test_a_user_s_own_code_is_run_by_torch(stable: Stable, tmp_path: Path) -> None:
    """`--trust-bundle`: the digest by which engines are kept does not cover it."""
    stable.add("openvino", 0.5)
    bundle = replace(make_bundle(tmp_path), trusted=True)
    engine = Engine(nn.Conv3d(1, 3, 3, padding=1), bundle, CPU, engine="auto")
    engine.begin_job(10**6)
    engine(WINDOWS)
    assert (engine.name, stable.made) == ("torch", [])


# ---- the real ones


def compute(name: str, case: Case, windows: Tensor, folder: Path) -> Tensor:
    with torch.no_grad():
        BACKENDS[name].make(case, folder)
    return BACKENDS[name].load(case, folder)(windows)


def one_of_each_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.InstanceNorm3d(4),
        nn.PReLU(),
        nn.Conv3d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.ConvTranspose3d(8, 3, 2, stride=2),
    ).eval()


@pytest.mark.skipif(BACKENDS["openvino"].missing(CPU, "fp32") is not None, reason="OpenVINO is not here")
def test_openvino_computes_what_torch_does_whatever_the_batch_and_in_silence(tmp_path: Path) -> None:
    case = Case(one_of_each_layer(), CPU, "fp32", (1, 12, 12, 12), 4, "digest")
    windows = torch.randn(3, 1, 12, 12, 12)
    with torch.no_grad():
        BACKENDS["openvino"].make(case, tmp_path)
    run = BACKENDS["openvino"].load(case, tmp_path)
    scores = run(windows)
    torch.testing.assert_close(scores, eager(case)(windows), rtol=0, atol=1e-5)
    assert torch.equal(scores, torch.cat([run(windows[:1]), run(windows[1:])]))
    with pytest.raises(RuntimeError):
        run(torch.zeros(3, 1, 11, 12, 12))
    assert torch.equal(scores, run(windows))
    assert isinstance(run, OwnThreads)
    with pytest.raises(RuntimeError):
        run.begin(torch.zeros(1, 1, 11, 12, 12))()
    answers = [run.begin(window[None]) for window in windows]
    assert torch.equal(scores, torch.cat([answer() for answer in reversed(answers)]).flip(0))
    assert sys.modules["openvino_telemetry"] is None  # what would report to its makers was never loaded


@pytest.mark.slow
@pytest.mark.skipif(BACKENDS["compile"].missing(CPU, "fp32") is not None, reason="no C++ compiler is here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_it_computes_what_torch_does(precision: str, tmp_path: Path) -> None:
    case = Case(one_of_each_layer(), CPU, precision, (1, 12, 12, 12), 4, "digest")
    windows = torch.randn(3, 1, 12, 12, 12)
    scores = compute("compile", case, windows, tmp_path)
    torch.testing.assert_close(scores, eager(case)(windows).float(), rtol=0, atol=1e-5 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_computes_what_torch_does(dims: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = getattr(nn, f"Conv{dims}d")(1, 3, 3, padding=1).eval()
    case = Case(network, CPU, "bf16", (1, *[12] * dims), 4, "digest")
    windows = torch.randn(3, 1, *[12] * dims)
    plain = eager(case)(windows)
    scores = compute("torch-channels-last", case, windows, tmp_path)
    torch.testing.assert_close(scores, plain, rtol=0, atol=0.05)
    assert torch.equal(plain, eager(case)(windows))  # the network that others use is as it was


@pytest.mark.slow
@pytest.mark.skipif(BACKENDS["openvino"].missing(CPU, "fp32") is not None, reason="OpenVINO is not here")
def test_a_study_has_the_labels_of_torch(tmp_path: Path) -> None:
    bundle, stack = make_bundle(tmp_path), make_stack(blobs((20, 24, 24)))
    sinks = Collected(), Collected(), Collected()
    segment(StackSource(stack), bundle, sinks[0], settings=Settings(engine="torch"))
    results = [
        segment(StackSource(stack), bundle, sink, settings=Settings(engine="openvino", batch=batch))
        for sink, batch in zip(sinks[1:], (1, 4), strict=True)
    ]
    assert [result.engine for result in results] == ["openvino"] * 2
    assert (sinks[0].labels == sinks[1].labels).mean() > 0.9999
    assert (sinks[1].labels == sinks[2].labels).all()  # the same bits whatever the batch
