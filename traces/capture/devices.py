"""The device that a capture runs on."""

from __future__ import annotations

import torch

from scenarios.errors import MoesimError


def chosen_device(name: str | None) -> torch.device:
    """The device of this name; None: a CUDA GPU where there is one, else the CPU. Raises MoesimError without a GPU."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise MoesimError("torch finds no CUDA GPU on this machine; use --device cpu")
    return torch.device("cuda", 0) if there and name != "cpu" else torch.device("cpu")
