"""Tables of dispatch and combine kernels as fitting problems: DeepEP of SGLang and vLLM, and TensorRT-LLM on NVL72.

All were measured with uniform routing, so the copies that leave a device follow from the row's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.exchange_starts import (
    LOW_LATENCY,
    LOW_LATENCY_NETWORK,
    NORMAL,
    NORMAL_NETWORK,
    RACK,
    RACK_PREPARE,
    LawStart,
)
from hwmodels.calibration.fit import FOLDS, Constants, Rows, Times
from hwmodels.calibration.link_problem import LinkProblem, link_of_device, meant, numbers_of
from hwmodels.expert_exchange import LowLatencyLaw, NormalLaw, RackLaw, Shipment, exchange_s
from hwmodels.library import find_link
from hwmodels.validation.columns import Column
from scenarios.models import BYTES_PER_ACTIVATION, DType

SIDES: tuple[tuple[str, DType], ...] = (("dispatch", "fp8_block"), ("combine", "bf16"))
RANKS = 8  # devices of a node in all DeepEP tables
NETWORK = "ndr-ib"  # what joined the nodes of the multi-node tables
RACK_DTYPES: dict[str, DType] = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"}
RACK_KERNELS = {"NVLinkOneSided": "nvl72-one-sided", "NVLinkTwoSided": "nvl72-two-sided"}
RACK_OPS = {
    "alltoall_prepare": "prepare",
    "alltoall_dispatch": "dispatch",
    "alltoall_combine": "combine",
    "alltoall_combine_low_precision": "combine-low-precision",
}
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTable:
    """Columns of a table, int64[row]; rows of one number in `shapes` are left out together."""

    tokens: Ints
    hidden_size: Ints
    top_k: Ints
    n_experts: Ints
    shapes: Ints
    n_devices: Ints
    n_nodes: Ints
    sms: Ints

    def rows(self, chosen: NDArray[np.bool_]) -> ExchangeTable:
        """The chosen rows."""
        return ExchangeTable(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def shipment(self, copies: Times, dtype: DType) -> Shipment:
        """What one device exchanges in every row, copies in `dtype`."""
        return Shipment(
            tokens=self.tokens,
            copies=copies,
            copy_bytes=self.hidden_size * BYTES_PER_ACTIVATION[dtype],
            n_experts=self.n_experts,
            top_k=self.top_k,
            n_devices=self.n_devices,
            n_nodes=self.n_nodes,
            sms=self.sms,
        )


def visited_groups(n_groups: Ints, n_experts: Ints, top_k: Ints) -> Times:
    """Groups (devices or nodes) that a token of uniform routing visits: float64[row].

    G (1 - C(E - E/G, k) / C(E, k)): a group is missed where all k choices fall among the other experts.
    """
    missed = np.ones(len(top_k))
    for choice in range(int(top_k.max(initial=0))):
        left = np.maximum(n_experts - n_experts / n_groups - choice, 0) / np.maximum(n_experts - choice, 1)
        missed = np.where(choice < top_k, missed * left, missed)
    return n_groups * (1 - missed)


def low_latency_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """Dispatch (fp8) and combine (bf16) of DeepEP's low-latency kernels; every expert gets a copy of its own."""
    table = _deepep_table(columns)
    kernel = "deepep-low-latency"
    problems = []
    for link, rows in _by_link(table, str(columns["device"][0])):
        part = table.rows(rows)
        groups = np.where(link == NETWORK, part.n_nodes, part.n_devices)
        copies = part.tokens * part.top_k * (groups - 1) / groups
        starts = LOW_LATENCY_NETWORK if link == NETWORK else LOW_LATENCY
        for side, dtype in SIDES:
            seconds = columns[f"{side}_avg_t_us"].astype(np.float64)[rows] * 1e-6
            problems.append(_problem((link, kernel, side), part, part.shipment(copies, dtype), seconds, starts[side]))
    return problems


def normal_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """Dispatch (fp8) and combine (bf16) of DeepEP's normal kernels, notify included; a node gets one copy of a token.

    Rows of eight nodes are left out: they come from a congested run (18 GB/s where DeepEP's authors state 46 to 51).
    """
    table = _deepep_table(columns)
    problems = []
    for link, rows in _by_link(table, str(columns["device"][0])):
        congested = rows & (table.n_nodes > 2)
        part = table.rows(rows & ~congested)
        groups = np.where(link == NETWORK, part.n_nodes, part.n_devices)
        copies = part.tokens * visited_groups(groups, part.n_experts, part.top_k) * (groups - 1) / groups
        starts = NORMAL_NETWORK if link == NETWORK else NORMAL
        for side, dtype in SIDES:
            times_us = columns[f"{side}_transmit_us"].astype(np.float64) + columns[f"{side}_notify_us"].astype(
                np.float64
            )
            problems.append(
                _problem(
                    (link, "deepep-normal", side),
                    part,
                    part.shipment(copies, dtype),
                    times_us[rows & ~congested] * 1e-6,
                    starts[side],
                    {"eight nodes: a congested run": int(congested.sum())},
                )
            )
    return problems


def moe_a2a_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """Dispatch and combine (bf16 both) of DeepEP as vLLM calls it, its own work around the kernels included."""
    table = _deepep_table(columns, tokens="num_tokens", top_k="topk", sms="sms")
    backend, phase = columns["comm_backend"].astype(np.str_), columns["phase"].astype(np.str_)
    seconds = columns["latency"].astype(np.float64) * 1e-6
    problems = []
    for name, kernel in (("deepep_ht", "deepep-normal"), ("deepep_ll", "deepep-low-latency")):
        for side in ("dispatch", "combine"):
            rows = (backend == name) & (phase == side)
            part = table.rows(rows)
            ranks, normal = part.n_devices, name == "deepep_ht"
            copies = part.tokens * (visited_groups(ranks, part.n_experts, part.top_k) if normal else part.top_k)
            shipment = part.shipment(copies * (ranks - 1) / ranks, "bf16")
            starts = NORMAL if normal else LOW_LATENCY
            card = (link_of_device(str(columns["device"][0])), kernel, side)
            problems.append(_problem(card, part, shipment, seconds[rows], starts[side]))
    return problems


def rack_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """Prepare, dispatch and combine of TensorRT-LLM's all-to-all on NVL72; a device gets one copy of a token.

    Rows are routed in turn, so a token visits min(k, EP) devices. Combines travel in bf16 whatever was dispatched.
    """
    tokens, n_devices = columns["num_tokens"].astype(np.int64), columns["moe_ep_size"].astype(np.int64)
    top_k = columns["topk"].astype(np.int64)
    table = ExchangeTable(
        tokens=tokens,
        hidden_size=columns["hidden_size"].astype(np.int64),
        top_k=top_k,
        n_experts=columns["num_experts"].astype(np.int64),
        shapes=numbers_of(tokens.tolist()),
        n_devices=n_devices,
        n_nodes=np.ones_like(tokens),
        sms=np.zeros_like(tokens),
    )
    copies = tokens * np.minimum(top_k, n_devices) * (n_devices - 1) / n_devices
    source, op = columns["kernel_source"].astype(np.str_), columns["op_name"].astype(np.str_)
    dtype = columns["moe_dtype"].astype(np.str_)
    bytes_per_value = np.array([BYTES_PER_ACTIVATION[meant(RACK_DTYPES, name, "moe_dtype")] for name in dtype.tolist()])
    problems = []
    for name, one_op in sorted(set(zip(source.tolist(), op.tolist(), strict=True))):
        rows = (source == name) & (op == one_op)
        part, side = table.rows(rows), meant(RACK_OPS, one_op, "op_name")
        shipment = part.shipment(copies[rows], "nvfp4" if side == "combine-low-precision" else "bf16")
        if side == "dispatch":
            shipment = replace(shipment, copy_bytes=part.hidden_size * bytes_per_value[rows])
        card = (link_of_device(str(columns["device"][0])), meant(RACK_KERNELS, name, "kernel_source"), side)
        seconds = columns["latency"].astype(np.float64)[rows] * 1e-3
        if side == "prepare":
            shipment = replace(shipment, copies=np.zeros(len(seconds)))
        starts = RACK_PREPARE if side == "prepare" else RACK
        problems.append(_problem(card, part, shipment, seconds, starts))
    return problems


def _deepep_table(
    columns: dict[str, Column], *, tokens: str = "num_token", top_k: str = "num_topk", sms: str = "dispatch_sms"
) -> ExchangeTable:
    names = ("hidden_size", top_k, "num_experts", tokens, "node_num")
    hidden, choices, experts, held, n_nodes = (columns[name].astype(np.int64) for name in names)
    shapes: list[Any] = list(zip(hidden.tolist(), choices.tolist(), experts.tolist(), strict=True))
    if len(set(shapes)) < FOLDS:
        shapes = held.tolist()
    return ExchangeTable(
        tokens=held,
        hidden_size=hidden,
        top_k=choices,
        n_experts=experts,
        shapes=numbers_of(shapes),
        n_devices=RANKS * n_nodes,
        n_nodes=n_nodes,
        sms=columns[sms].astype(np.int64) if sms in columns else np.zeros_like(held),
    )


def _by_link(table: ExchangeTable, device: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Rows of one node under the link between its devices, rows of several under the network."""
    for link, rows in ((link_of_device(device), table.n_nodes == 1), (NETWORK, table.n_nodes > 1)):
        if rows.any():
            yield link, rows


def _problem(
    card: tuple[str, str, str],
    table: ExchangeTable,
    shipment: Shipment,
    measured_s: Times,
    starts: LawStart,
    left_out: Mapping[str, int] | None = None,
) -> LinkProblem:
    link_bytes_per_s = find_link(card[0]).bytes_per_s.value
    law_class, parameters = starts

    def make(constants: Constants) -> LowLatencyLaw | NormalLaw | RackLaw:
        name = get_args(law_class.model_fields["law"].annotation)[0]
        return law_class.model_validate({**constants, "law": name, "source": "a fit under way", "kind": "measured"})

    def time_s(law: Any, rows: Rows) -> Times:
        chosen = {f.name: np.asarray(getattr(shipment, f.name))[rows] for f in fields(shipment)}
        return exchange_s(Shipment(**chosen), law, link_bytes_per_s)

    sizes = numbers_of(table.tokens.tolist())
    return LinkProblem(
        kind="exchanges",
        link=card[0],
        subject=card[1],
        part=card[2],
        measured_s=measured_s,
        shapes=table.shapes,
        sizes=None if np.array_equal(numbers_of(table.shapes.tolist()), sizes) else sizes,
        starts=(parameters,),
        make=make,
        time_s=time_s,
        link_bytes_per_s=link_bytes_per_s,
        left_out={reason: count for reason, count in (left_out or {}).items() if count},
    )
