"""A network on a device, in a precision, by its back-end: batches, memory that runs out, a back-end that fails."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor, nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.network import load_network
from medseg.errors import InvalidBundle, OutOfMemory
from medseg.inference import malloc
from medseg.inference.engines.case import FAILURES, OPENVINO, TORCH, Case, Run
from medseg.inference.engines.device import CPU, is_out_of_memory
from medseg.inference.engines.held import held_by, held_of
from medseg.inference.engines.ladder import MemoryLadder, Step
from medseg.inference.engines.openvino import OwnThreads
from medseg.inference.engines.pinned import Staging
from medseg.inference.engines.selection import AUTO, RaceResult, candidates, choose, race, usable
from medseg.inference.grids.restore import activate, discretise
from medseg.inference.windows.layout import Layout

logger = logging.getLogger(__name__)
_TOGETHER: Final = 256 << 20  # bytes held for windows that run together; more of them gain nothing on a CPU


class Engine:
    """A network on its device, called with batches of windows; the back-end is chosen when the first ones come.

    A back-end that fails gives way to torch. When memory runs out a step of the `MemoryLadder` is taken, and a warning
    kept; when there is none left, OutOfMemory is raised.
    """

    def __init__(
        self,
        network: nn.Module,
        bundle: Bundle,
        device: torch.device,
        precision: str = "fp32",
        batch: int = 1,
        *,
        engine: str = TORCH,
        exact: bool = False,
        careful: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """engine: `selection.ENGINES`. exact: batches run as they are given. careful: memory did not
        suffice before. waiting: called while an engine is made.

        Raises UsageError for an engine that cannot be used here.
        """
        usable(engine, device, precision)
        self.network, self.bundle, self.exact = network, bundle, exact
        self.name, self.warnings = TORCH, list[str]()
        mirrored = 2 ** len(bundle.flips) if device.type == "cuda" and not careful else 1
        self._ladder = MemoryLadder(device, precision, batch, CPU if careful else device, exact, mirrored)
        self._expected = 1
        # Code that a user vouches for is not in the digest by which engines are kept.
        self._wanted = TORCH if careful or bundle.trusted else engine
        self._waiting, self._staging = waiting, Staging(device)
        self._run: Run | None = None
        self._threads, self._yields = torch.get_num_threads(), False
        if careful:
            where = "" if device == CPU else ", scores in the machine's memory"
            self._warn(f"out of memory before: now one window at a time on {device}{where}")
        self._slice_axis = slice_axis(bundle)

    @property
    def device(self) -> torch.device:
        return self._ladder.device

    @property
    def precision(self) -> str:
        return self._ladder.precision

    @property
    def batch(self) -> int:
        """Windows at a time."""
        return self._ladder.batch

    @property
    def mirrored(self) -> int:
        """Mirror images of a window at a time."""
        return self._ladder.mirrored

    def held(self, layout: Layout) -> int:
        """Bytes that torch holds at once for one window, its input and scores among them; measured once on a machine,
        and kept beside its verdict on engines."""
        return self._held(self._shape(layout))

    def worth(self, layout: Layout) -> int:
        """How many windows at a time gain anything. On a CPU a large one is as fast alone, in half the memory."""
        return self._worth(self._shape(layout))

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        """(C, *roi) of a window, as the network sees it."""
        roi = [size for m, size in enumerate(layout.roi) if m != self._slice_axis]
        return self.bundle.image_channels * layout.slices, *roi

    def _held(self, shape: tuple[int, ...]) -> int:
        case = self._case(shape)
        kept = self.device == CPU and not self.bundle.trusted
        return held_of(case) if kept else held_by(case.network, case.shape, case.device)

    def _worth(self, shape: tuple[int, ...]) -> int:
        if self.batch == 1 or self.exact or self.device != CPU:
            return self.batch
        return min(self.batch, max(_TOGETHER // max(self._held(shape), 1), 1))

    def begin_job(self, windows: int, batch: int | None = None, mirrored: int | None = None) -> None:
        """What comes next are about so many windows. batch, mirrored: no more at a time from now on, of them and of
        the mirror images of one."""
        self._expected = windows
        self._ladder = self._ladder.at_most(batch or self.batch, mirrored or self.mirrored)

    def to_device(self, voxels: Tensor) -> Tensor:
        """Voxels (n, ...) on the CPU -> on the device, if that has room for more than windows."""
        return self._placed(lambda device: voxels if device == CPU else self._staging(voxels))

    def room_for_voxels(self, *shape: int) -> Tensor:
        """What windows are cut out of: on the device, if that has room for more than windows."""
        return self._placed(lambda device: torch.empty(shape, device=device))

    def _placed(self, make: Callable[[torch.device], Tensor]) -> Tensor:
        device = CPU if self.device == CPU else self._ladder.sums
        try:
            return make(device)
        except (MemoryError, RuntimeError) as error:
            if device == CPU or not is_out_of_memory(error):
                raise
            return make(CPU)

    def __call__(self, windows: Tensor) -> Tensor:
        """(B, C, *roi) -> (B, K, *roi) float32 on the device; roi has three entries, also for 2D.

        The first call chooses the back-end, for a job that has begun.
        """
        done: list[Tensor] = []
        while sum(map(len, done)) < len(windows):
            begin = sum(map(len, done))
            try:
                done.append(self._forward(windows[begin : begin + self.batch]))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._yield_memory(error)
            done = [scores.to(self.device) for scores in done]  # which it may have had to leave
        return done[0] if len(done) == 1 else torch.cat(done)

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros to stitch scores in: on the device, or in the machine's memory where that has not got so much."""
        try:
            return torch.zeros(shape, dtype=dtype, device=self._ladder.sums)
        except (MemoryError, RuntimeError) as error:
            step = self._ladder.sums_elsewhere()
            if not is_out_of_memory(error) or step is None:
                raise
        self._go_on(step)
        return torch.zeros(shape, dtype=dtype, device=self._ladder.sums)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Meanwhile torch has one thread where the back-end has threads of its own: two on a core wait for each other,
        and every parallel loop for the slower one."""
        self._yields = True
        try:
            yield
        finally:
            self._yields = False
            torch.set_num_threads(self._threads)

    @property
    def steady(self) -> bool:
        """Whether a window's scores are the same bits whatever batch it is in; not known before the first one."""
        return self.device == CPU and self._run is not None

    @property
    def ahead(self) -> int:
        """How many windows may be on their way while one is waited for; 0 where the back-end has no threads of its own,
        and before the first call."""
        return self.batch - 1 if isinstance(self._run, OwnThreads) else 0

    def begin(self, window: Tensor) -> Callable[[], Tensor]:
        """(1, C, *roi), to be left as it is until there is the answer: (1, K, *roi), as from a call. Where `ahead`."""
        assert isinstance(self._run, OwnThreads)
        self._share_threads()
        try:
            answer = self._run.begin(self._to_network(window))
        except FAILURES as error:
            self._fall_back(error)
            return lambda: self(window)

        def waited() -> Tensor:
            try:
                scores = answer()
            except FAILURES as error:
                self._fall_back(error)
                return self(window)
            return checked(scores, window, self.bundle)

        return waited

    def _forward(self, windows: Tensor) -> Tensor:
        return checked(self._scores(self._to_network(windows)), windows, self.bundle)

    def _scores(self, windows: Tensor) -> Tensor:
        if self._run is None:
            malloc.keep_large(True)
            chosen = choose(
                self._wanted,
                self._case(windows.shape[1:]),
                windows,
                self._labels,
                expected=self._expected,
                warn=self._warn,
                waiting=self._waiting,
            )
            self.name, self._run = chosen.engine, chosen.run
            malloc.keep_large(self.name != OPENVINO)
            if chosen.scores is not None:
                return chosen.scores
        self._share_threads()
        try:
            return self._run(windows)
        except FAILURES as error:
            if self.name == TORCH:
                raise
            self._fall_back(error)
        return self._scores(windows)

    def _share_threads(self) -> None:
        if torch.get_num_threads() != (threads := 1 if self._yields and self.name == OPENVINO else self._threads):
            torch.set_num_threads(threads)

    def _fall_back(self, error: BaseException) -> None:
        if self.name != TORCH:  # or others that were begun with failed before
            self._warn(f"engine {self.name} failed ({type(error).__name__}): going on with torch")
            self._use_torch()

    def race(self, windows: Tensor) -> RaceResult:
        """Race all back-ends that can run here over windows (B, C, *roi), as many as jobs run at a time, and keep the
        verdict for jobs to come."""
        windows = self._to_network(windows)
        shape = tuple(windows.shape[1:])
        self.begin_job(self._expected, self._worth(shape))
        case, windows = self._case(shape), windows[: self.batch]
        return race(AUTO, case, windows, self._labels, candidates(case), self._waiting)

    def _case(self, shape: Sequence[int]) -> Case:
        """shape: (C, *roi) of a window, as the network sees it."""
        of = self.network, self.device, self.precision, tuple(shape), self.batch, self.bundle.digest, self.mirrored
        return Case(*of, plain=self.exact or self.bundle.nnunet is not None)  # the bits of MONAI, and of nnU-Net

    def _to_network(self, windows: Tensor) -> Tensor:
        staged = self._staging(windows)
        return staged if self._slice_axis is None else staged.squeeze(self._slice_axis + 2)

    def _labels(self, scores: Tensor) -> Tensor:
        finish = self.bundle.recipe.finish
        return discretise(activate(scores.float().transpose(0, 1), finish.activation), finish)

    def _use_torch(self) -> None:
        self.name, self._wanted, self._run = TORCH, TORCH, None

    def _yield_memory(self, error: BaseException) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        step = self._ladder.fewer_windows()
        if step is None:
            raise OutOfMemory(
                f"bundle {self.bundle.name}: windows of {self.bundle.recipe.window.roi} voxels do not fit into memory, "
                f"{self.batch} at a time: close other programs or use a bundle with a smaller window"
            ) from error
        self._go_on(step)

    def _go_on(self, step: Step) -> None:
        self._warn(step.warning)
        (before, mirrored), self._ladder = (self.device, self.mirrored), step.ladder
        if self.device != before:
            self._staging = Staging(self.device)
            self.network = copy_on(self.device, self.network)
        if self.device != before or self.mirrored != mirrored:
            self._use_torch()

    def _warn(self, message: str) -> None:
        logger.warning(message)
        self.warnings.append(message)


def copy_on(device: torch.device, network: nn.Module) -> nn.Module:
    """A copy of a network whose tensors are on a device; another job may run the network itself meanwhile."""
    tensors: dict[int, Any] = {
        id(held): nn.Parameter(held.detach().to(device), held.requires_grad) for held in network.parameters()
    }
    tensors |= {id(held): held.to(device) for held in network.buffers()}
    return copy.deepcopy(network, tensors)


def slice_axis(bundle: Bundle) -> int | None:
    """Along which axis of a window a 2D network sees one slice; None for a 3D one."""
    window = bundle.recipe.window
    return window.slice_axis if len(window.roi) == 2 else None


def checked(scores: Tensor, windows: Tensor, bundle: Bundle) -> Tensor:
    """What a network gave for windows (B, C, *roi), as (B, K, *roi) float32. Raises InvalidBundle where it is not."""
    if not isinstance(scores, Tensor):
        raise InvalidBundle(bundle.name, "network_def", f"gives {type(scores).__name__}, not one tensor")
    axis = slice_axis(bundle)
    scores = scores.float() if axis is None else scores.float().unsqueeze(axis + 2)
    expected = (len(windows), bundle.out_channels, *windows.shape[2:])
    if tuple(scores.shape) != expected:
        raise InvalidBundle(
            bundle.name,
            "network_def",
            f"gives {tuple(scores.shape)} for a window of {tuple(windows.shape)}, expected {expected}",
        )
    return scores


class Networks:
    """The networks used last, so that a cohort or a worker builds each once. Safe to share between threads."""

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self._held: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
        self._lock = Lock()

    def get(self, bundle: Bundle, device: torch.device) -> nn.Module:
        """The bundle's network on the device, in evaluation mode. Raises WeightsMismatch, InvalidBundle."""
        key = (bundle.digest, str(device))
        with self._lock:
            network = self._held.pop(key, None)
            if network is None:
                network = load_network(bundle, device).eval()
            self._held[key] = network
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
            return network
