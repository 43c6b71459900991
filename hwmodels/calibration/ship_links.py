"""Writes the shipped cards of collectives, exchanges and copies anew from the public tables they were fitted to.

    python -m hwmodels.calibration.ship_links TABLES

TABLES is a folder with aiconfigurator-core 0.12.0's tables by system, below `kernels/`, and the copy figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hwmodels.calibration.links import calibrate_links, cards_yaml
from hwmodels.cards import CardSet
from hwmodels.library import LIBRARY
from scenarios.files import whole_file

H200 = "kernels/h200_sxm/comm"
FITTED_ON = "fitted on aiconfigurator-core 0.12.0 (Apache-2.0)"
SHIPPED: dict[str, tuple[str, tuple[str, ...]]] = {
    "kernels/a100_sxm/comm/nccl_2.27.3.parquet": (f"{FITTED_ON}, A100 NCCL 2.27.3 table", ("nvlink-3",)),
    f"{H200}/nccl_2.26.2.parquet": (f"{FITTED_ON}, H200 NCCL 2.26.2 table", ("nvlink-4",)),
    "kernels/b200_sxm/comm/nccl_2.29.2.parquet": (f"{FITTED_ON}, B200 NCCL 2.29.2 table", ("nvlink-5",)),
    "kernels/rtx_pro_6000_server/comm/nccl_2.29.2.parquet": (
        f"{FITTED_ON}, RTX PRO 6000 Server NCCL 2.29.2 table",
        ("pcie-5-peer",),
    ),
    f"{H200}/vllm_0.24.0_custom_allreduce.parquet": (f"{FITTED_ON}, H200 vLLM 0.24.0 all-reduce table", ("nvlink-4",)),
    f"{H200}/sglang_0.5.14_custom_allreduce.parquet": (
        f"{FITTED_ON}, H200 SGLang 0.5.14 all-reduce table",
        ("nvlink-4",),
    ),
    f"{H200}/trtllm_1.3.0rc20_custom_allreduce.parquet": (
        f"{FITTED_ON}, H200 TensorRT-LLM 1.3.0rc20 all-reduce table",
        ("nvlink-4",),
    ),
    f"{H200}/sglang_0.5.12_wideep_deepep_ll_perf_1node.parquet": (
        f"{FITTED_ON}, H200 DeepEP low-latency table of SGLang 0.5.12, one node",
        ("nvlink-4",),
    ),
    f"{H200}/sglang_0.5.12_wideep_deepep_normal_perf_1node.parquet": (
        f"{FITTED_ON}, H200 DeepEP normal table of SGLang 0.5.12, one node",
        ("nvlink-4",),
    ),
    f"{H200}/sglang_0.5.6.post2_wideep_deepep_ll_perf_multinode.parquet": (
        f"{FITTED_ON}, H100 or H200 DeepEP low-latency table of SGLang 0.5.6.post2, 2 and 8 nodes",
        ("ndr-ib",),
    ),
    f"{H200}/sglang_0.5.6.post2_wideep_deepep_normal_perf_multinode.parquet": (
        f"{FITTED_ON}, H100 or H200 DeepEP normal table of SGLang 0.5.6.post2, 2 nodes",
        ("ndr-ib",),
    ),
    "kernels/gb200/comm/trtllm_1.3.0rc10_alltoall_NVL72.parquet": (
        f"{FITTED_ON}, GB200 NVL72 all-to-all table of TensorRT-LLM 1.3.0rc10",
        ("nvlink-5-nvl72",),
    ),
    "offload/pcie_nvlink/h100_pcie_h2d_d2h_vs_block.csv": (
        "fitted on figures 3 and 4 of the vLLM blog on its KV offloading connector (2026-01-08): H100, pinned memory",
        ("pcie-5",),
    ),
}
"""Table -> how a card names it, and the links whose cards come from it."""
CARRIED_OVER = (
    "kernels/h100_sxm/comm/nccl_2.27.3.parquet",
    f"{H200}/vllm_0.24.0_moe_a2a.parquet",
)
"""Tables of links whose cards come from another one: the cards are judged on them."""


def ship_links(tables: Path, folder: Path = LIBRARY) -> tuple[Path, ...]:
    """Fit all shipped tables below `tables` and write one file a kind of card into `folder`; returns the files.

    Raises HardwareError where a table is missing.
    """
    fitted = [calibrate_links(tables / name, source, links) for name, (source, links) in SHIPPED.items()]
    written = []
    for kind in ("collectives", "exchanges", "copies"):
        cards = CardSet.model_validate({kind: [card for one in fitted for card in getattr(one, kind)]})
        path = folder / f"{kind}.yaml"
        head = f"# Written by `python -m hwmodels.calibration.ship_links TABLES`; the laws are in {LAWS[kind]}.\n"
        with whole_file(path) as temporary:
            temporary.write_text(head + cards_yaml(cards), encoding="utf-8")
        written.append(path)
    return tuple(written)


LAWS = {
    "collectives": "hwmodels/collectives.py",
    "exchanges": "hwmodels/expert_exchange.py",
    "copies": "hwmodels/copies.py",
}


if __name__ == "__main__":
    for file in ship_links(Path(sys.argv[1])):
        print(file)
