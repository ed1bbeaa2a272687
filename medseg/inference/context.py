"""What every way through the pipeline is given: what computes, and whom it tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from medseg.bundle.bundle import Bundle
from medseg.bundle.recipe import Recipe
from medseg.dicom.instance import Pixels
from medseg.inference.arriving.decoding import Decoder
from medseg.inference.engines.engine import Engine
from medseg.inference.labels import Flag
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.settings import Settings
from medseg.progress import Cancelled, Progress, Report, Stage, StageClock, check

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PipelineContext:
    """One call of `segment`.

    recipe: the bundle's, as the settings want it. floor: what the network is given where a voxel has no value.
    engine: of the bundle's network, or the first of them. engines: makes those of others.
    present: how many slices there are, where none has to come; then they are read as they are decoded.
    warnings, flags: what a result must say of how it came about, attempts that were given up included.
    """

    series_uid: str
    bundle: Bundle
    recipe: Recipe
    settings: Settings
    engine: Engine
    engines: Callable[[Bundle], Engine]
    decoder: Decoder
    floor: float
    present: int | None
    on_progress: Report
    cancelled: Cancelled
    clock: StageClock = field(default_factory=StageClock)
    warnings: list[str] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def tell(self, stage: Stage, done: int, total: int | None) -> None:
        """Raises Interrupted once somebody has asked to stop."""
        check(self.cancelled)
        self.on_progress(Progress(stage, done, total))

    def warn(self, warning: str | None) -> None:
        """Keep a warning, if there is one."""
        if warning is not None:
            self.warnings.append(warning)

    def seen(self, collector: LabelCollector, plane: Pixels) -> Pixels:
        """A decoded plane as the network is given it, once `collector` knows of its values."""
        plane, values = collector.valueless.see(plane)
        collector.samples.add(values)
        if self.present is not None:
            self.tell(Stage.READ, len(collector.samples), self.present)
        return plane

    def timed(self, stage: Stage, items: Iterator[T]) -> Iterator[T]:
        """The same items; what they take to come is that stage's time."""
        while True:
            with self.clock.time(stage):
                item = next(items, None)
            if item is None:
                return
            yield item
