"""How to segment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from medseg.bundle.recipe import Recipe
from medseg.errors import UsageError
from medseg.inference.engines.case import TORCH
from medseg.inference.engines.device import CPU
from medseg.inference.engines.selection import AUTO, ENGINES, default_engine


@dataclass(frozen=True)
class Settings:
    """How to segment.

    device: auto, cpu, cuda or cuda:N. precision: fp32, auto, bf16 or fp16, as far as the bundle allows.
    engine: auto, torch, compile, openvino or tensorrt (`selection.ENGINES`); MEDSEG_ENGINE unless given, else auto.
    overlap, batch: of windows, instead of the bundle's. assume_frame_of_reference: derive one where a series has none.
    careful: memory did not suffice before: one window at a time, and scores stitched in the machine's memory.
    exact: scores are to the bit those of MONAI's sliding_window_inference on a CPU; in fp32, by torch, more memory.
    """

    device: str = "auto"
    precision: str = "fp32"
    engine: str = field(default_factory=default_engine)
    overlap: float | None = None
    batch: int | None = None
    assume_frame_of_reference: bool = False
    careful: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.exact:
            self._check_exact()
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"overlap must be at least 0 and less than 1, found {self.overlap:g}")
        if self.engine not in ENGINES:
            raise UsageError(f"no such engine: {self.engine!r}; known are {', '.join(ENGINES)}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch must be at least 1, found {self.batch}")

    def _check_exact(self) -> None:
        if self.device not in (AUTO, CPU.type) or self.engine not in (AUTO, TORCH) or self.precision != "fp32":
            asked = f"device {self.device}, engine {self.engine}, precision {self.precision}"
            raise UsageError(f"exact results are those of torch on a CPU in fp32, found {asked}")
        if self.careful:
            raise UsageError("exact results need windows in batches as MONAI's, not one at a time")

    def applied_to(self, recipe: Recipe) -> Recipe:
        window = recipe.window
        if self.overlap is not None:
            window = replace(window, overlap=(self.overlap,) * len(window.roi))
        if self.batch is not None:
            window = replace(window, batch=self.batch)
        if self.careful:
            window = replace(window, batch=1)
        return replace(recipe, window=window)
