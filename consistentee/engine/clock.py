"""The clock of the engines, and the latency of one prompt."""

import time
from dataclasses import dataclass

import torch


def clock(device: torch.device) -> float:
    """Return the time in seconds, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Latency:
    """When something became of a prompt, in seconds since it was asked together with the others.

    Attributes:
        queued: its prompt began to be read.
        first_token: its first new token was there.
        completed: its last one was.
    """

    queued: float
    first_token: float
    completed: float
