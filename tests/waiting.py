"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 150.0  # on a machine that others use; nothing here waits for so long on an idle one
SHORTEST_S, LONGEST_S = 0.01, 0.05  # between two looks: soon at first, and seldom where it takes long


def wait_for(what: str, look: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What a look says once it says something; fails by the name of what did not come."""
    deadline, pause_s = time.monotonic() + patience_s, SHORTEST_S
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:g} s for {what}")
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, LONGEST_S)
    return answer
