"""Laws of a host's cores against measured tables: experts by threads, and decode bounded by DRAM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Parameter, Times
from hwmodels.host import Host, experts_s, find_cpu, gemm_s
from hwmodels.host_constants import CpuConstants, CpuKernel
from hwmodels.library import find_cpu_kernels
from hwmodels.moe import ExpertShape
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.held_out import leave_one_out_s, small_score
from hwmodels.validation.launch import GATE_TABLE, PROFILE_TABLE, validate_eager, validate_gate, validate_small_kernels
from hwmodels.validation.score import Part, Score
from hwmodels.validation.timings import read_columns

THREADS_TABLE = "offload/cpu_offload_threads/epyc_9r14_moe_tflops.csv"
DECODE_TABLE = "offload/ktransformers/cpu_offload.csv"
EPYC = "epyc-9r14-1s"
ENGINES = {"epyc-9r14-avx512": "custom_avx512_TFLOPS", "epyc-9r14-ggml": "ggml_TFLOPS"}
PARAMETERS = (
    Parameter(name="core_frac", start=0.5, low=0.05, high=2.0),
    Parameter(name="host_frac", start=0.4, low=0.05, high=2.0),
    Parameter(name="expert_tokens", start=3.0, low=0.01, high=50.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer that the benchmark runs on 512 tokens: (n, k) of its dense products, an expert, tokens per expert."""

    dense: tuple[tuple[int, int], ...]
    expert: ExpertShape
    tokens: NDArray[np.int64]

    @property
    def flop(self) -> float:
        dense = 2.0 * BENCHMARK_TOKENS * sum(n * k for n, k in self.dense)
        return dense + 2.0 * int(self.tokens.sum()) * float(sum(n * k for n, k in self.expert.gemm_sizes))


BENCHMARK_TOKENS = 512


def _layer(model: str) -> _Layer:
    """Sizes and tokens per expert of github z-manoj/ops_ggml_benchmark, commit d06fc72, configs/*.cfg.

    Its Qwen3-Coder has hidden size 3072 and intermediate size 1536, unlike the model of that name.
    """
    balanced = model.endswith(" balanced")
    if model.startswith("Mixtral-8x7B"):
        hidden, inner, q, kv = 4096, 14336, 4096, 1024
        skewed = np.array([126, 323, 80, 68, 256, 37, 15, 119])
        tokens = np.full(8, 128) if balanced else skewed
    else:
        hidden, inner, q, kv = 3072, 1536, 4096, 512
        power_law = np.round(468 * np.arange(1, 129) ** -0.8).astype(np.int64)  # 468 tokens down to 10
        tokens = np.full(128, 32) if balanced else power_law
    expert = ExpertShape(hidden_size=hidden, intermediate_size=inner, gated=True, weight_dtype="fp16")
    return _Layer(
        dense=((q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (len(tokens), hidden)),
        expert=expert,
        tokens=tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadRows:
    """Rows of the table of threads: layers, threads, and the measured time of each [s]."""

    layers: tuple[_Layer, ...]
    threads: NDArray[np.int64]
    measured_s: Times


def read_thread_rows(data: Path, column: str) -> ThreadRows:
    """The rows of one engine; the table states FLOP/s of the whole layer, dense products included."""
    columns = read_columns(data / THREADS_TABLE)
    layers = tuple(_layer(str(model)) for model in columns["model"].tolist())
    flop_per_s = columns[column].astype(np.float64) * 1e12
    measured_s = np.array([layer.flop for layer in layers]) / flop_per_s
    return ThreadRows(layers=layers, threads=columns["threads"].astype(np.int64), measured_s=measured_s)


def layer_s(layer: _Layer, host: Host) -> float:
    """Time of the benchmark's layer on a host [s]."""
    dense_s = sum(float(gemm_s(BENCHMARK_TOKENS, sizes, "fp16", host)) for sizes in layer.dense)
    return dense_s + float(experts_s(layer.tokens, layer.expert, host))


def thread_law(rows: ThreadRows, base: CpuConstants) -> Callable[..., Times]:
    """Predicted time of given rows under constants of the vector kernel; the rest as in `base`."""
    card = find_cpu(EPYC).card

    def law(constants: dict[str, float], places: NDArray[np.int64]) -> Times:
        kernels = base.model_copy(update={"vector": CpuKernel(**constants)})
        hosts = (Host(card=card, constants=kernels, n_threads=int(rows.threads[place])) for place in places)
        return np.array([layer_s(rows.layers[place], host) for place, host in zip(places, hosts, strict=True)])

    return law


def validate_threads(data: Path) -> tuple[Score, ...]:
    """Both engines of the table of threads: shipped constants, and constants fitted without the judged row."""
    scores = []
    for card, column in ENGINES.items():
        rows, constants = read_thread_rows(data, column), find_cpu_kernels(card).constants
        law, every = thread_law(rows, constants), np.arange(len(rows.measured_s))
        fitted_s = law(constants.vector.model_dump(), every)
        held_out_s = leave_one_out_s(law, rows.measured_s, PARAMETERS)
        table = Path(THREADS_TABLE).name
        scores.append(small_score(("CPU experts", "card", table, card), fitted_s, rows.measured_s, constants))
        scores.append(small_score(("CPU experts", "unseen rows", table, card), held_out_s, rows.measured_s, constants))
    return tuple(scores)


# DeepSeek-V3: 58 MoE layers of 256 experts, 7168 x 2048 (arXiv 2412.19437).
DEEPSEEK_V3_LAYERS = 58
DEEPSEEK_V3_EXPERT = ExpertShape(hidden_size=7168, intermediate_size=2048, gated=True, weight_dtype="int4")
DECODE_HOST = "xeon-6454s-2s"
DECODE_CONFIGS = {  # experts of a token, sockets
    "DSV3 q4km, 6 experts V0.2.1": (6, 2),
    "dual-socket 8 experts": (8, 2),
    "single-socket 8 experts": (8, 1),
}


def decode_bound_per_s(n_experts: int, sockets: int) -> float:
    """Tokens per second at which a single DeepSeek-V3 request's experts alone would keep the sockets busy."""
    cores = find_cpu(DECODE_HOST).card.cores.value
    host = find_cpu(DECODE_HOST, cores * sockets // 2)
    return 1.0 / (DEEPSEEK_V3_LAYERS * float(experts_s([1] * n_experts, DEEPSEEK_V3_EXPERT, host)))


def validate_decode_bound(data: Path) -> tuple[Score, ...]:
    """The bound over published decode rates of DeepSeek-V3 in 4 bits: a bias below zero would break the bound."""
    columns = read_columns(data / DECODE_TABLE)
    bounds, published = [], []
    table = zip(columns["config"].tolist(), columns["metric"].tolist(), columns["value"].tolist(), strict=True)
    for config, metric, value in table:
        if config in DECODE_CONFIGS and metric == "decode_tok_s":
            bounds.append(decode_bound_per_s(*DECODE_CONFIGS[config]))
            published.append(float(value))
    what: tuple[str, Part, str, str] = ("decode bound over published", "card", Path(DECODE_TABLE).name, DECODE_HOST)
    return (small_score(what, np.array(bounds), np.array(published), None),)


def host(folder: Path, progress: Progress) -> list[Judged]:
    """The suite of CPU experts, small kernels and launches, as far as their tables lie in `folder` or beside it."""
    beside = folder.parent
    parts: tuple[tuple[bool, Callable[[], tuple[Score, ...]]], ...] = (
        ((beside / THREADS_TABLE).is_file(), lambda: validate_threads(beside)),
        ((beside / DECODE_TABLE).is_file(), lambda: validate_decode_bound(beside)),
        ((beside / PROFILE_TABLE).is_file(), lambda: validate_small_kernels(beside)),
        ((beside / GATE_TABLE).is_file(), lambda: validate_gate(beside)),
        (True, lambda: validate_eager(folder)),
    )
    rows: list[Judged] = []
    for number, (is_there, validate) in enumerate(parts):
        progress("host and launches", number / len(parts))
        rows += [judged("host", one) for one in (validate() if is_there else ())]
    return rows
