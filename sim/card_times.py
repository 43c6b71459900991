"""Times of the parts of a pass by the laws of a calibrated card: kernels, copies, the host, and how they share.

What the card has no kernel for is counted in calls of its smallest kernel (`CALLS`), as a reader of
`traces/capture/decoder.py` counts them. Nothing here is fitted on runs.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hwmodels.attention import attention_decode_s, attention_prefill_s, attention_projections_s
from hwmodels.copies import CopyLaw, find_copy_law, host_copy_s
from hwmodels.devices import Device
from hwmodels.gemm import gate_s, head_s, mlp_s, norm_s, stream_s
from hwmodels.host import Host, expert_s, find_cpu
from hwmodels.kernels import BLOCKS, stretched_to
from hwmodels.library import find_copies, find_device, find_kernels, find_link, find_node
from hwmodels.moe import ExpertShape, expert_shape, grouped_gemm_moe_s
from scenarios.errors import CalibrationError
from scenarios.models import BYTES_PER_ACTIVATION, ModelCard

CALLS = {"embed": 12, "head": 5, "gate": 2, "add": 2}
"""Small calls around a part: positions, masks and rotations of a pass; choice, lengths and norm behind it; views."""
WORKS = {"copy": "copy", "expert": "expert", "pass": "experts"}
"""Neighbours of a run -> works of the table of sharing; the experts of a pass are what it mostly does."""
SHARERS = {
    **dict.fromkeys(
        ("equal", "ragged", "gathered", "prompt", "prompt gathered", "gate", "sort", "combine"), "attention"
    ),
    **dict.fromkeys(("expert", "head", "shared"), "experts"),
    "side copy": "copy",
    "side expert": "expert",
}
"""Parts -> works of the table of sharing: small calls as attention, which is many of them; weights as experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardTimes:
    """Parts of the passes of one model on one device.

    sharing      (work, beside) -> factor of its time.
    hand_over_s  from giving a side stream work until it is known to be done, beside the work.
    """

    model: ModelCard
    device: Device
    host: Host | None
    copies: CopyLaw
    link_bytes_per_s: float
    sharing: Mapping[tuple[str, str], float]
    hand_over_s: float

    def line_s(self, part: str, size: float) -> float:
        """Time of a part [s], `size` tokens of the pass or of the expert; requests of the head."""
        model, device, n = self.model, self.device, int(size)
        dtype = model.weight_dtype
        if part == "expert":
            return self._expert_s(n)
        if part in ("sort", "combine"):
            return self._layer_s / 2  # what a layer of experts takes whatever the work: half before it, half behind
        calls_s = CALLS.get(part, 0) * device.kernels.launch().kernel_s
        if part == "gate":
            chosen_s = gate_s(n, model.hidden_size, model.n_experts, model.top_k, dtype, device)
            return calls_s + float(norm_s(n, model.hidden_size, dtype, device) + chosen_s)
        if part == "head":
            scores_s = head_s(n, model.hidden_size, model.vocab_size, 1, dtype, device)
            return calls_s + float(norm_s(n, model.hidden_size, dtype, device) + scores_s)
        if part == "shared":
            return float(mlp_s(n, model.hidden_size, model.shared_intermediate_size, model.gated, dtype, device))
        return calls_s + float(stream_s(3 * n * self._row_bytes, device))  # a sum of rows, or rows of the embedding

    def attention_s(self, variant: str, requests: int, longest: int) -> float:
        """Time of a layer's attention with its norm and products [s]; all contexts are padded to the longest."""
        model, device = self.model, self.device
        tokens = requests * longest if variant.startswith("prompt") else requests
        dtype, attention = model.weight_dtype, model.attention
        around_s = norm_s(tokens, model.hidden_size, dtype, device)
        around_s = around_s + attention_projections_s(tokens, attention, model.hidden_size, 1, dtype, device)
        if variant.startswith("prompt"):
            mixed_s = attention_prefill_s(
                tokens, requests * longest * (longest + 1) // 2, attention, 1, model.kv_dtype, device
            )
        else:
            mixed_s = attention_decode_s(requests, requests * longest, attention, 1, model.kv_dtype, device)
        return float(around_s + mixed_s) + (self._gather_s(requests, longest) if "gathered" in variant else 0.0)

    def fixed_s(self, part: str) -> float:
        """Time of a copy of an expert ("side copy"), or of the hand-over [s]."""
        if part == "hand-over":
            return self.hand_over_s
        blocks_s = [
            host_copy_s(1, n * k * BYTES_PER_ACTIVATION[self.model.weight_dtype], self.copies, self.link_bytes_per_s)
            for n, k in self._shape.gemm_sizes
        ]
        return float(sum(blocks_s))

    def host_expert_s(self, tokens: int) -> float:
        """Time of one expert on the host [s]."""
        if self.host is None:
            raise CalibrationError(f"device {self.device.card.name} has no host card; name one in its node")
        return float(expert_s(tokens, self._shape, self.host))

    def slowdown(self, part: str, neighbour: str) -> float:
        """Factor of a part's time beside a neighbour; 1 where it was not measured."""
        return max(self.sharing.get((SHARERS.get(part, ""), WORKS[neighbour]), 1.0), 1.0)

    @property
    def _shape(self) -> ExpertShape:
        return expert_shape(self.model)

    @property
    def _row_bytes(self) -> float:
        return self.model.hidden_size * BYTES_PER_ACTIVATION[self.model.activation_dtype]

    @property
    def _layer_s(self) -> float:
        """Time of a layer of experts without any token [s]."""
        return float(grouped_gemm_moe_s([0] * self.model.n_experts, self._shape, self.device))

    def _expert_s(self, tokens: int) -> float:
        """What an expert with tokens adds to its layer [s]."""
        alone_s = grouped_gemm_moe_s([tokens] + [0] * (self.model.n_experts - 1), self._shape, self.device)
        return float(alone_s) - self._layer_s

    def _gather_s(self, requests: int, longest: int) -> float:
        """Keys and values of scattered slots, copied together in memory [s]."""
        heads = self.model.attention
        values = requests * longest * heads.n_kv_heads * heads.head_dim  # type: ignore[union-attr]
        block = values * BYTES_PER_ACTIVATION[self.model.activation_dtype]
        return float(host_copy_s(2, block, self.copies, self.link_bytes_per_s))


def card_times(node: str, model: ModelCard, sharing: Path, hand_over_s: float) -> CardTimes:
    """Times of a model on the device of a node with its host. Raises HardwareError where cards are missing."""
    card = find_node(node)
    device_card = find_device(card.device)
    if card.host_link is None or (copies := find_copies(card.host_link)) is None:
        raise CalibrationError(f"node {node} has no link to its host with measured copies; calibrate one")
    memory = "pageable" if device_card.kind == "cpu" else "pinned"
    return CardTimes(
        model=model,
        device=Device(card=device_card, kernels=find_kernels(device_card.kernels)),
        host=None if card.host is None else find_cpu(card.host),
        copies=find_copy_law(copies, "to-device", "copy-engine", memory),
        link_bytes_per_s=find_link(card.host_link).bytes_per_s.value,
        sharing=read_sharing(sharing),
        hand_over_s=hand_over_s,
    )


def stretched_times(times: CardTimes, end: Literal["low", "high"]) -> CardTimes:
    """The times with every kernel law at one end of its own 80 % band; copies and sharing stay."""
    kernels = stretched_to(times.device.kernels, (*BLOCKS, "launch"), end)
    return replace(times, device=replace(times.device, kernels=kernels))


def read_sharing(path: Path) -> dict[tuple[str, str], float]:
    """(work, beside) -> median factor. Raises CalibrationError where the file is not a table of sharing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {(row["work"], row["beside"]): float(row["factor"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(f"{path}: not a table of sharing ({error}); see `moesim capture kernels`") from None
