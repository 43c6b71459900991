"""Constants of the laws of cores as calibrations fit them: where they start, and between which bounds."""

from __future__ import annotations

from hwmodels.calibration.fit import Parameter
from hwmodels.devices import Device

FIXED = Parameter(name="fixed_s", start=5e-6, low=1e-8, high=1e-3)
PRODUCT = (
    FIXED,
    Parameter(name="run_s", start=5e-8, low=1e-11, high=1e-5),
    Parameter(name="vector_frac", start=0.15, low=0.005, high=2),
    Parameter(name="vector_extra_rows", start=0.5, low=0.005, high=100),
    Parameter(name="packed_frac", start=0.9, low=0.05, high=1.5),
    Parameter(name="packed_extra_rows", start=15, low=0.05, high=500),
)
GEMM = (*PRODUCT, Parameter(name="activation_frac", start=1.0, low=0.01, high=20))
MOE = (*PRODUCT, Parameter(name="expert_s", start=1e-5, low=1e-9, high=1e-3))
DECODE = (
    FIXED,
    Parameter(name="memory_frac", start=0.5, low=0.01, high=20),
    Parameter(name="compute_frac", start=0.3, low=0.01, high=2),
    Parameter(name="narrow_dim", start=90, low=16, high=512),
    Parameter(name="start_s", start=1e-6, low=1e-9, high=1e-3),
    Parameter(name="start_gain", start=1.0, low=0.01, high=20),
)
PREFILL = (
    FIXED,
    Parameter(name="memory_frac", start=0.1, low=0.001, high=20),
    Parameter(name="compute_frac", start=0.8, low=0.01, high=2),
    Parameter(name="score_s", start=1e-9, low=1e-12, high=1e-6),
)
VECTOR_ROWS = tuple({"law": "cores", "vector_rows": rows} for rows in (0, 1, 2, 3, 4))
"""Rows up to which a library takes its vector kernel, of which the best is kept."""


def has_cores(device: Device) -> bool:
    """Whether the device is a CPU, whose kernels follow the laws of `hwmodels.cores`."""
    return device.card.kind == "cpu"
