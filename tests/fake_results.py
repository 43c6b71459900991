"""Comparisons made up from a formula, so that outputs can be tested without simulating."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.expert_loads import ExpertLoads
from sim.log import OpTimes
from sim.pipelines.pipeline import StageBar
from sim.port_loads import PortLoads
from sim.program import Work
from sim.result import Comparison, Constant, RunResult, Table

Array = NDArray[np.float64]


def fake_comparison(
    *, names: tuple[str, ...] = ("greedy", "contiguous", "random"), n_devices: int = 4, n_layers: int = 3
) -> Comparison:
    """Plans best first; step times grow by 10 % from one to the next, and the second is the baseline (if there)."""
    results = tuple(fake_result(name, rank, n_devices, n_layers) for rank, name in enumerate(names))
    return fake_of(fake_table(results))


def fake_table(results: tuple[RunResult, ...], title: str = "decode, 64 tokens per device") -> Table:
    """A table of these results, best first, whose baseline is the second one."""
    return Table(
        title=title,
        workload={"phase": "decode", "tokens_per_device": 64},
        results=results,
        first=results[min(1, len(results) - 1)].name,
        moe_layers=tuple(range(1, len(results[0].device_tokens) + 1)),
        notes=("Trace: toy & Co, synthetic, 16 tokens.", "Plans fitted on 2 sequences and judged on 2 others."),
    )


def fake_of(*tables: Table) -> Comparison:
    """A comparison of these tables."""
    return Comparison(
        scenario="fake scenario",
        description="Made up from a formula.",
        model="toy-model",
        cluster="2 x toy-node",
        tables=tables,
        constants=(
            Constant(name="toy memory_bytes", value="1.41e+11", kind="datasheet", source="toy <datasheet>, page 3"),
            Constant(name="toy latency_s", value="2e-06", kind="assumed", source="a guess"),
        ),
        provenance={"moesim": "0.1.0", "seed": 7, "trace_layer_0": {"toy.npz": "0123456789abcdef"}},
        wall_s=1.25,
    )


def fake_result(name: str, rank: int, n_devices: int, n_layers: int) -> RunResult:
    """One plan whose step takes `1.1 ** rank` ms."""
    rng = np.random.default_rng([rank, n_devices, n_layers])
    step_s = 1e-3 * 1.1**rank
    tokens = 64 * np.exp(rng.normal(0, 0.05 + 0.04 * rank, (n_layers, n_devices)))
    traffic = rng.uniform(1e6, 2e6, (n_devices, n_devices)) * (1 - np.eye(n_devices))
    return RunResult(
        name=name,
        plan={"placement": {"solver": name, "redundant": rank}},
        metrics={
            "step_time_s": step_s,
            "step_time_s.p50": step_s,
            "tokens_per_s": 64 * n_devices / step_s,
            "tokens_per_s_per_device": 64 / step_s,
            "hidden_comm_frac": 0.25,
            "load_imbalance": 1.2 + 0.1 * rank,
            "load_imbalance.fit": 1.05 + 0.1 * rank,
            "cross_node_frac": 0.5 if n_devices > 8 else 0.0,
            "devices_per_token": 4.5,
            "bytes.nvlink": 1.5e8,
            "memory_bytes.peak": 6.5 * 2**30,
        },
        breakdown_s={
            "attention": 0.3e-3,
            "experts": 0.4e-3,
            "head": 0.05e-3,
            "transfer": 0.2e-3,
            "waiting": step_s - 0.95e-3,
        },
        step_times_s=step_s * (1 + 0.01 * rng.standard_normal(24)),
        device_tokens=tokens,
        device_experts=np.full((n_layers, n_devices), 8.0),
        expert_loads=fake_experts(tokens),
        layer_imbalance=tokens.max(axis=1) / tokens.mean(axis=1),
        traffic_bytes=traffic,
        port_loads=fake_ports(traffic, min(8, n_devices)),
        devices_per_node=8,
        log=fake_log(rng, n_devices, n_layers, step_s / n_layers),
        stages=fake_stages(step_s),
    )


def fake_experts(tokens: Array) -> ExpertLoads:
    """As many experts as devices, each on its own."""
    return ExpertLoads(
        fullest_share=tokens / tokens.mean(axis=1, keepdims=True), copies=np.ones(tokens.shape, np.int64)
    )


def fake_stages(step_s: float) -> tuple[StageBar, ...]:
    """One microbatch through two stages, forward and beside a backward pass of another one."""
    passes = (("forward", 0, False),), (("forward", 0, False), ("backward", 1, True))
    return tuple(
        StageBar(stage=stage, passes=own, begin_s=step_s * stage / 2, end_s=step_s * (stage + 1) / 2)
        for stage, own in enumerate(passes)
    )


def fake_log(rng: np.random.Generator, n_devices: int, n_layers: int, layer_s: float) -> tuple[OpTimes, ...]:
    """Attention, dispatch, experts and combine of every layer; each exchange ends when its last device has."""
    ops: list[OpTimes] = []
    free_s: Array = np.zeros(n_devices)
    shares = {"attention": 0.3, "dispatch": 0.1, "experts": 0.4, "combine": 0.1}
    for layer in range(1, n_layers + 1):
        for kind, share in shares.items():
            busy_s = share * layer_s * (1 + 0.2 * rng.random(n_devices))
            travels = kind in {"dispatch", "combine"}
            end_s = np.full(n_devices, (free_s + busy_s).max()) if travels else free_s + busy_s
            ops.append(fake_op(kind, layer, free_s, busy_s, end_s))
            free_s = end_s
    return tuple(ops)


def fake_op(kind: str, layer: int, begin_s: Array, busy_s: Array, end_s: Array, chunk: int = 0) -> OpTimes:
    """One operation of the log; dispatch and combine travel, all else computes."""
    travels = kind in {"dispatch", "combine"}
    return OpTimes(
        work=Work(kind, layer, chunk if travels or kind == "experts" else -1),
        lane="exchange" if travels else "compute",
        begin_s=begin_s,
        busy_s=busy_s,
        end_s=end_s,
    )


def fake_ports(traffic: Array, devices_per_node: int) -> PortLoads:
    """What `traffic` makes every port carry: 1 GB/s inside nodes, 100 MB/s between them."""
    node = np.arange(len(traffic)) // devices_per_node
    inside = np.where(node[:, None] == node[None, :], traffic, 0.0)
    kinds = ("nvlink", "infiniband") if node[-1] > 0 else ("nvlink",)
    parts = (inside, traffic - inside)[: len(kinds)]
    moved = np.array([[part.sum(axis=1), part.sum(axis=0)] for part in parts])
    return PortLoads(links=kinds, moved_bytes=moved, busy_s=moved / np.array([[[1e9]], [[1e8]]])[: len(kinds)])
