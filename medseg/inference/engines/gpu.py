"""How much a job takes of a GPU: windows in batches that fill its share, and what it gives back at its end.

a job's share     half of the GPU's memory, or what is free of it where others have taken more: so two jobs, of one
                  process or of two, need not know of each other
a batch           1, 2, 4 ... windows, as many as half of the share holds: the same for each job of a bundle on a
                  machine, unless others have taken more, or scores and slices leave less
"""

from __future__ import annotations

from typing import Final

import torch

MOST: Final = 16  # windows, or mirror images of them, at a time: more take longer to come than they gain
JOBS: Final = 2  # in flight


def free_bytes(device: torch.device) -> int:
    """What is free on a GPU, for this process."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def share_bytes(device: torch.device) -> int:
    """What one job may take of a GPU."""
    total: int = torch.cuda.mem_get_info(device)[1]
    return min(free_bytes(device), total // JOBS)


def most_that_fit(room: int, beside: int, each: int, most: int = MOST) -> int:
    """`most` windows, or what remains of them when halved, that fit into so many bytes beside others; at least 1.

    They take no more than half of the room, so that what lies beside them seldom decides how many they are.
    """
    while most > 1 and max(beside, room // 2) + most * each > room:
        most //= 2
    return most


def give_back(device: torch.device) -> None:
    """Let other processes have what no tensor needs any more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
