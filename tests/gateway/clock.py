"""Time that passes when a test says so."""

from __future__ import annotations

import time


class Clock:
    """Both clocks: seconds of the monotonic one, which starts at any number, and seconds since 1970."""

    def __init__(self, wall_s: float | None = None) -> None:
        self.now_s, self.wall_s = 1000.0, time.time() + 2.0 if wall_s is None else wall_s

    def after(self, seconds: float) -> tuple[float, float]:
        """Let time pass; both clocks then."""
        self.now_s += seconds
        self.wall_s += seconds
        return self.now_s, self.wall_s

    def wall(self) -> float:
        """As `time.time`."""
        return self.wall_s
