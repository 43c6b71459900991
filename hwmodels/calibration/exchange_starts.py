"""Where the fits of exchange laws start, and between which bounds they search: one law and its constants a side."""

from __future__ import annotations

from hwmodels.calibration.fit import Parameter
from hwmodels.calibration.link_problem import start
from hwmodels.expert_exchange import LowLatencyLaw, NormalLaw, RackLaw

LawStart = tuple[type[LowLatencyLaw] | type[NormalLaw] | type[RackLaw], tuple[Parameter, ...]]
"""The law that a block of constants belongs to, and its constants with start and bounds."""

LOW_LATENCY: dict[str, LawStart] = {
    "dispatch": (
        LowLatencyLaw,
        start(
            latency_s=(6e-6, 1e-7, 1e-4),
            expert_latency_s=(1.2e-8, 1e-12, 1e-6),
            byte_latency_s=(2e-10, 1e-13, 1e-8),
            start_s=(1e-6, 1e-8, 1e-4),
            copy_s=(1.5e-9, 1e-12, 1e-7),
            sm_byte_s=(5e-10, 1e-13, 1e-8),
            bandwidth_frac=(0.6, 0.05, 2.0),
        ),
    ),
    "combine": (
        LowLatencyLaw,
        start(
            latency_s=(4.6e-6, 1e-7, 1e-4),
            choice_latency_s=(3e-7, 1e-12, 1e-5),
            byte_latency_s=(2e-10, 1e-13, 1e-8),
            start_s=(2.5e-6, 1e-8, 1e-4),
            copy_s=(1e-9, 1e-12, 1e-7),
            token_byte_s=(4e-12, 1e-15, 1e-10),
            bandwidth_frac=(0.6, 0.05, 2.0),
        ),
    ),
}
LOW_LATENCY_NETWORK: dict[str, LawStart] = dict.fromkeys(
    ("dispatch", "combine"),
    (
        LowLatencyLaw,
        start(
            latency_s=(2e-5, 1e-6, 1e-3),
            doubling_latency_s=(2e-6, 1e-9, 1e-4),
            start_s=(3e-6, 1e-8, 1e-4),
            bandwidth_frac=(0.9, 0.05, 2.0),
        ),
    ),
)
NORMAL: dict[str, LawStart] = {
    "dispatch": (
        NormalLaw,
        start(
            latency_s=(1.5e-5, 1e-6, 1e-3),
            byte_latency_s=(2e-10, 1e-13, 1e-8),
            start_s=(1e-5, 1e-7, 1e-3),
            token_sm_s=(3e-7, 1e-12, 1e-5),
            copy_sm_s=(5e-8, 1e-12, 1e-5),
            sm_bytes_per_s=(2.6e10, 1e8, 1e12),
            bandwidth_frac=(1.2, 0.05, 4.0),
            warm_up_s=(1.8e-5, 1e-7, 1e-3),
            warm_up_gain=(1.6, 1e-3, 1e2),
        ),
    ),
    "combine": (
        NormalLaw,
        start(
            latency_s=(2.5e-5, 1e-6, 1e-3),
            byte_latency_s=(1.5e-9, 1e-13, 1e-8),
            start_s=(1e-6, 1e-8, 1e-3),
            sm_bytes_per_s=(1.8e10, 1e8, 1e12),
            bandwidth_frac=(0.7, 0.05, 4.0),
            token_sm_byte_s=(1.6e-10, 1e-14, 1e-8),
            token_byte_s=(6.7e-12, 1e-15, 1e-10),
            warm_up_s=(4e-5, 1e-7, 1e-3),
            warm_up_gain=(0.25, 1e-3, 1e2),
        ),
    ),
}
NORMAL_NETWORK: dict[str, LawStart] = dict.fromkeys(
    ("dispatch", "combine"),
    (
        NormalLaw,
        start(
            latency_s=(6e-5, 1e-6, 1e-3),
            start_s=(3e-6, 1e-8, 1e-3),
            sm_bytes_per_s=(2e9, 1e8, 1e12),
            bandwidth_frac=(1.0, 0.05, 4.0),
            warm_up_s=(4e-5, 1e-7, 1e-3),
            warm_up_gain=(0.7, 1e-3, 1e2),
        ),
    ),
)
RACK: LawStart = (
    RackLaw,
    start(
        latency_s=(1e-5, 1e-7, 1e-3),
        doubling_latency_s=(1e-6, 1e-9, 1e-4),
        start_s=(2e-6, 1e-9, 1e-4),
        token_s=(3e-8, 1e-13, 1e-6),
        token_byte_s=(1e-12, 1e-16, 1e-9),
        wire_token_s=(1e-8, 1e-13, 1e-6),
        bandwidth_frac=(0.66, 0.01, 3.0),
    ),
)
RACK_PREPARE: LawStart = (
    RackLaw,
    start(
        latency_s=(1e-5, 1e-7, 1e-3),
        doubling_latency_s=(1e-6, 1e-9, 1e-4),
        start_s=(2e-6, 1e-9, 1e-4),
        wire_token_s=(1e-8, 1e-13, 1e-6),
    ),
)
