"""Tables of NCCL collectives and custom all-reduces as fitting problems, one an operation and group size.

Columns of aiconfigurator-core's nccl and custom_allreduce tables: latency in ms, message_size in elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Constants, Parameter, Rows, Times
from hwmodels.calibration.link_problem import LinkProblem, link_of_device, meant, numbers_of
from hwmodels.collectives import CollectiveLaw, CollectiveOp, protocol_s, sent_bytes
from hwmodels.library import find_link
from hwmodels.validation.columns import Column
from scenarios.errors import HardwareError

ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
OP_NAMES: dict[str, CollectiveOp] = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
}
REDUCING = ("all-reduce", "reduce-scatter")
CUTS = (  # bytes between the protocols that fits start from; the best fit counts
    (2**13, 2**16, 2**22),
    (2**14, 2**18, 2**23),
    (2**15, 2**20, 2**22),
    (2**16, 2**20, 2**24),
    (2**18, 2**22, 2**26),
)
INT8 = "reductions in int8, up to 1.3 times slower: not the path of activations"


def nccl_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """One problem an operation and group size; keys measured twice are averaged."""
    return list(_problems(columns, "nccl_dtype", np.full(len(columns["latency"]), "nccl")))


def custom_all_reduce_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """One problem a group size and mode (graph or eager) of an engine; large messages are those of NCCL."""
    mode = next((columns[name] for name in ("backend", "implementation") if name in columns), None)
    if mode is None:
        raise HardwareError("a table of custom all-reduces needs a column backend or implementation")
    return list(_problems(columns, "allreduce_dtype", np.char.replace(mode.astype(np.str_), "_", "-")))


def _problems(columns: dict[str, Column], dtype_column: str, library: NDArray[np.str_]) -> Iterator[LinkProblem]:
    dtype = columns[dtype_column].astype(np.str_)
    op = np.array([meant(OP_NAMES, name, "op_name") for name in columns["op_name"].astype(np.str_).tolist()])
    n_devices = columns["num_gpus"].astype(np.int64)
    size = columns["message_size"].astype(np.int64) * np.array(
        [meant(ELEMENT_BYTES, name, dtype_column) for name in dtype.tolist()]
    )
    link = link_of_device(str(columns["device"][0]))
    seconds = columns["latency"].astype(np.float64) * 1e-3
    other_path = (dtype == "int8") & np.isin(op, REDUCING)
    for name, one_op, n in sorted(set(zip(library.tolist(), op.tolist(), n_devices.tolist(), strict=True))):
        rows = (library == name) & (op == one_op) & (n_devices == n)
        claimed = rows & ~other_path
        left_out = {INT8: int((rows & other_path).sum())}
        sizes, measured_s = _averaged(size[claimed], dtype[claimed], seconds[claimed])
        left_out["keys measured twice and averaged"] = int(claimed.sum()) - len(sizes)
        yield _problem((link, str(name)), (one_op, int(n)), sizes, measured_s, left_out)


def _averaged(size: NDArray[np.int64], dtype: NDArray[np.str_], seconds: Times) -> tuple[NDArray[np.int64], Times]:
    """Size and mean time of each distinct (size, dtype)."""
    keys = sorted(set(zip(size.tolist(), dtype.tolist(), strict=True)))
    means = [float(seconds[(size == one_size) & (dtype == one_dtype)].mean()) for one_size, one_dtype in keys]
    return np.array([key[0] for key in keys]), np.array(means)


def _problem(
    card: tuple[str, str],
    group: tuple[CollectiveOp, int],
    size: NDArray[np.int64],
    measured_s: Times,
    left_out: dict[str, int],
) -> LinkProblem:
    op, n_devices = group
    link_bytes_per_s = find_link(card[0]).bytes_per_s.value
    sent = sent_bytes(op, size, n_devices)

    def make(constants: Constants) -> CollectiveLaw:
        values = np.array(list(constants.values()))
        latency_s, frac = values[::2], values[1::2]
        times_s = latency_s[:, None] + sent / (frac[:, None] * link_bytes_per_s)
        used = sorted(set(times_s.argmin(axis=0).tolist()), key=lambda place: latency_s[place])
        return CollectiveLaw(
            op=op,
            n_devices=n_devices,
            latencies_s=tuple(latency_s[used].tolist()),
            bandwidth_fracs=tuple(frac[used].tolist()),
            source="a fit under way",
            kind="measured",
        )

    def time_s(law: Any, rows: Rows) -> Times:
        return protocol_s(sent[rows], law, link_bytes_per_s)

    return LinkProblem(
        kind="collectives",
        link=card[0],
        subject=card[1],
        part=f"{op} {n_devices}",
        measured_s=measured_s,
        shapes=numbers_of(size.tolist()),
        starts=tuple(_start(sent, measured_s, cuts, link_bytes_per_s) for cuts in CUTS),
        make=make,
        time_s=time_s,
        link_bytes_per_s=link_bytes_per_s,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _start(sent: Times, measured_s: Times, cuts: tuple[int, ...], link_bytes_per_s: float) -> tuple[Parameter, ...]:
    """Latency and bandwidth in turn, by least squares on the relative error of each range of sizes between the cuts."""
    parameters: list[Parameter] = []
    place = np.searchsorted(cuts, sent)
    for number in range(len(cuts) + 1):
        inside = place == number
        weight = 1 / measured_s[inside]
        columns = np.stack([np.ones(inside.sum()), sent[inside]], axis=1) * weight[:, None]
        latency_s, byte_s = np.linalg.lstsq(columns, np.ones(inside.sum()), rcond=None)[0].tolist()
        latency_s = max(latency_s, 0.2 * float(measured_s.min()))
        frac = 1 / (max(byte_s, 1e-14) * link_bytes_per_s)
        parameters += [
            Parameter(name=f"latency_{number + 1}_s", start=latency_s, low=1e-7, high=3e-3),
            Parameter(name=f"bandwidth_frac_{number + 1}", start=min(max(frac, 1e-3), 1.5), low=1e-4, high=3.0),
        ]
    return tuple(parameters)
