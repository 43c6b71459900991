from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from hwmodels.cards import CardSet, LinkCard
from hwmodels.devices import Device
from hwmodels.library import (
    find_cpu_kernels,
    find_device,
    find_host,
    find_kernels,
    find_link,
    find_node,
    list_cards,
    read_cards,
)
from scenarios.errors import HardwareError
from scenarios.sources import Source, Sourced
from tests.shared import shared_file

CARDS = list_cards()

# fmt: off
DEVICES = [
    "v100-pcie", "t4", "rtx-2080-ti", "l4", "l20", "l40s", "a40", "a5000", "a6000", "rtx-3090", "rtx-4090",
    "rtx-pro-6000", "rtx-6000-turing", "rtx-6000-ada",
    "a100-40", "a100-80", "a800", "h20", "h100-sxm", "h100-pcie", "h800", "h200-sxm", "b200",
    "gb200", "ascend-910c", "logic-pim", "bank-pim", "bankgroup-pim", "zen4-core",
]
# fmt: on

# name, memory [GB], bandwidth [GB/s], dtype, dense peak [TFLOP/s], SMs; typed from the maker's datasheet named beside.
DATASHEET = [
    ("t4", 16, 320, "fp16", 65, 40),  # T4 product brief PB-09256-001
    ("v100-pcie", 32, 900, "fp16", 112, 80),  # V100 datasheet
    ("rtx-2080-ti", 11, 616, "fp16", 53.8, 68),  # Turing whitepaper, reference card, fp32 accumulation
    ("l4", 24, 300, "fp8", 485 / 2, 58),  # L4 datasheet, 485 with sparsity
    ("l40s", 48, 864, "bf16", 362.05, 142),  # L40S datasheet
    ("a40", 48, 696, "bf16", 149.7, 84),  # A40 datasheet
    ("a6000", 48, 768, "bf16", 309.7 / 2, 84),  # RTX A6000 datasheet, 309.7 with sparsity
    ("a5000", 24, 768, "bf16", 222.2 / 2, 64),  # RTX A5000 datasheet, 222.2 with sparsity
    ("rtx-6000-turing", 24, 672, "fp16", 130.5, 72),  # Turing whitepaper, Quadro RTX 6000
    ("rtx-6000-ada", 48, 960, "bf16", 1457 / 4, 142),  # RTX 6000 Ada datasheet, 1,457 in fp8 with sparsity
    ("rtx-3090", 24, 936, "bf16", 71, 82),  # GA102 whitepaper, fp32 accumulation
    ("rtx-4090", 24, 1008, "bf16", 165.2, 128),  # Ada whitepaper, fp32 accumulation
    ("a100-40", 40, 1555, "bf16", 312, 108),  # A100 datasheet
    ("a100-80", 80, 2039, "int8", 624, 108),  # A100 datasheet
    ("h100-pcie", 80, 2000, "bf16", 1513 / 2, 114),  # H100 datasheet, 1,513 with sparsity
    ("h100-sxm", 80, 3350, "fp8", 3958 / 2, 132),  # H100 datasheet, 3,958 with sparsity
    ("h200-sxm", 141, 4800, "bf16", 1979 / 2, 132),  # H200 datasheet, 1,979 with sparsity
    ("h20", 96, 4000, "bf16", 148, 78),  # MegaScale-Infer and MegaScale-MoE tables
    ("l20", 48, 864, "bf16", 119.5, 92),  # MegaScale-Infer table
    ("b200", 180, 7700, "nvfp4", 18000 / 2, 148),  # Blackwell datasheet 3384703, 18 PFLOPS with sparsity
    ("gb200", 186, 8000, "bf16", 10000 / 4, 152),  # GB200 NVL72 datasheet, two GPUs with sparsity
    ("ascend-910c", 64, 1600, "bf16", 752 / 2, 24),  # CloudMatrix384 paper, package of two dies
]

# name, nominal bandwidth of one direction [GB/s]
LINK_RATES = [
    ("nvlink-3", 600 / 2),
    ("nvlink-4", 900 / 2),
    ("nvlink-5", 1800 / 2),
    ("nvlink-3-a800", 400 / 2),
    ("nvlink-4-h800", 400 / 2),
    ("pcie-1", 4),
    ("pcie-2", 8),
    ("pcie-3", 16),
    ("pcie-4", 32),
    ("pcie-5", 64),
    ("hdr-ib", 200 / 8),
    ("ndr-ib", 400 / 8),
    ("unified-bus", 392 / 2),
]


def sources(spec: object, path: str = "") -> Iterator[tuple[str, Source]]:
    """Every source inside a card with the path to it."""
    if isinstance(spec, Source):
        yield path, spec
    elif isinstance(spec, BaseModel):
        for field in type(spec).model_fields:
            yield from sources(getattr(spec, field), f"{path}.{field}")
    elif isinstance(spec, dict):
        for key, value in spec.items():
            yield from sources(value, f"{path}.{key}")
    elif isinstance(spec, tuple):
        for value in spec:
            yield from sources(value, f"{path}.{getattr(value, 'name', '?')}")


ALL_SOURCES = list(sources(CARDS))


def test_the_promised_devices_are_shipped() -> None:
    assert sorted(card.name for card in CARDS.devices) == sorted(DEVICES)


@pytest.mark.parametrize(("name", "memory_gb", "gb_per_s", "dtype", "tflop_per_s", "n_sms"), DATASHEET)
def test_numbers_are_those_of_the_datasheet(
    name: str, memory_gb: float, gb_per_s: float, dtype: str, tflop_per_s: float, n_sms: int
) -> None:
    card = find_device(name)
    assert card.memory_bytes.value == pytest.approx(memory_gb * 1e9)
    assert card.memory_bytes_per_s.value == pytest.approx(gb_per_s * 1e9)
    assert card.peak_flop_per_s[dtype].value == pytest.approx(tflop_per_s * 1e12, rel=1e-3)  # type: ignore[index]
    assert card.n_sms.value == n_sms


@pytest.mark.parametrize(("name", "gb_per_s"), LINK_RATES)
def test_link_rates_are_of_one_direction(name: str, gb_per_s: float) -> None:
    assert find_link(name).bytes_per_s.value == pytest.approx(gb_per_s * 1e9)


def test_ridge_of_the_h200_is_206_flop_per_byte() -> None:
    device = Device(card=find_device("h200-sxm"), kernels=find_kernels("ideal"))
    assert device.peak_flop_per_s("bf16") / device.memory_bytes_per_s == pytest.approx(206, abs=0.1)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_types_stand_for_each_other(dtype: str) -> None:
    kernels = find_kernels("ideal")
    assert Device(card=find_device("t4"), kernels=kernels).peak_flop_per_s(dtype) == 65e12
    assert Device(card=find_device("a40"), kernels=kernels).peak_flop_per_s(dtype) == 149.7e12


def test_a_missing_peak_is_an_error_that_lists_the_present_ones() -> None:
    device = Device(card=find_device("a100-80"), kernels=find_kernels("ideal"))
    with pytest.raises(HardwareError, match=r"a100-80 has no peak for fp8 \(it has bf16, fp32, int8\)"):
        device.peak_flop_per_s("fp8_block")
    assert [device.multiplies(dtype) for dtype in ("bf16", "fp16", "int4", "fp8_block")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("name", "bandwidth_ratio", "flop_per_byte"), [("logic-pim", 4, 8), ("bankgroup-pim", 4, 8), ("bank-pim", 16, 1)]
)
def test_pim_units_have_the_ratios_of_duplex(name: str, bandwidth_ratio: float, flop_per_byte: float) -> None:
    card = find_device(name)
    assert card.pim is not None
    assert card.pim.memory_bytes_per_s.value == pytest.approx(bandwidth_ratio * 3.352e12)
    ratio = card.pim.peak_flop_per_s.value / card.pim.memory_bytes_per_s.value
    assert ratio == pytest.approx(flop_per_byte, rel=0.01)  # 106.5 TFLOPS are 7.94 per byte


def test_every_number_says_where_it_comes_from() -> None:
    assert len(ALL_SOURCES) > 450
    assert [path for path, source in ALL_SOURCES if not 10 <= len(source.source) <= 200] == []


def test_measured_numbers_name_the_measurement() -> None:
    measured = [(path, source.source) for path, source in ALL_SOURCES if source.kind == "measured"]
    assert len(measured) >= 15
    named = ("fit on", "fitted on", "the same table", "`moesim capture kernels`")
    assert [path for path, text in measured if not any(words in text for words in named)] == []


def test_numbers_are_positive() -> None:
    zero = [path for path, source in ALL_SOURCES if isinstance(source, Sourced) and source.value == 0]
    assert zero == [".devices.logic-pim.pim.exclusive"]


def test_faster_types_multiply_faster() -> None:
    order = ["fp32", "bf16", "fp8", "nvfp4"]
    for card in CARDS.devices:
        peaks = [card.peak_flop_per_s[dtype].value for dtype in order if dtype in card.peak_flop_per_s]
        assert peaks == sorted(peaks), card.name


def test_cards_name_only_existing_cards() -> None:
    for device in CARDS.devices:
        find_kernels(device.kernels)
    for node in CARDS.nodes:
        find_device(node.device)
        for link in filter(None, (node.intra_link, node.inter_link, node.host_link)):
            find_link(link)
        assert (node.host is None) == (node.host_link is None), node.name
        if node.host is not None:
            find_host(node.host)
    for host in CARDS.hosts:
        find_cpu_kernels(host.kernels)


def test_every_link_and_host_is_used_or_stands_for_itself() -> None:
    links = {link for node in CARDS.nodes for link in (node.intra_link, node.inter_link, node.host_link)}
    spare = {card.name for card in CARDS.links} - links
    assert spare == {"pcie-1", "pcie-2"}
    hosts = {node.host for node in CARDS.nodes}
    spare_kernels = {card.name for card in CARDS.cpu_kernels} - {card.kernels for card in CARDS.hosts}
    assert spare_kernels == {"epyc-9r14-ggml"}  # the other engine of that host
    spare_hosts = {card.name for card in CARDS.hosts} - hosts
    assert spare_hosts == {"xeon-e5-2650v4", "epyc-9r14-1s"}


@pytest.mark.parametrize("card", CARDS.links, ids=lambda card: card.name)
def test_link_efficiency_is_a_fraction(card: LinkCard) -> None:
    assert 0 < card.efficiency.value <= 1
    assert card.effective_bytes_per_s == card.bytes_per_s.value * card.efficiency.value
    assert card.ring_step_latency_s <= card.latency_s.value


def test_large_messages_reach_the_measured_rates() -> None:
    assert find_link("nvlink-4").effective_bytes_per_s == pytest.approx(280e9, rel=2e-3)  # NCCL all-to-all, 8 H200
    assert find_link("pcie-5").effective_bytes_per_s == pytest.approx(51.9e9, rel=2e-3)  # DMA to an H100
    assert find_link("pcie-4-a40").effective_bytes_per_s == pytest.approx(19.5e9, rel=2e-3)  # MoE-Lens
    assert find_link("nvlink-3").ring_step_latency_s == 2.1e-6
    assert find_link("pcie-4").ring_step_latency_s == find_link("pcie-4").latency_s.value


def test_host_dram_does_not_exceed_its_channels() -> None:
    for host in CARDS.hosts:
        assert host.dram_bytes_per_s.value / host.dram_channels.value <= 5600e6 * 8 + 1, host.name


def test_unknown_names_suggest_a_card() -> None:
    with pytest.raises(HardwareError, match=r"no device card 'h200' \(did you mean h200-sxm\?\); see `moesim list h"):
        find_device("h200")
    with pytest.raises(HardwareError, match=r"no device card 'h100' \(did you mean h100-sxm or h100-pcie\?\)"):
        find_device("h100")
    with pytest.raises(HardwareError, match=r"no link card 'nvlnk-4' \(did you mean 'nvlink-4'\?\)"):
        find_link("nvlnk-4")
    with pytest.raises(HardwareError, match=r"no node card 'h200-sxm-9' \(did you mean 'h200-sxm-8'\?\)"):
        find_node("h200-sxm-9")
    with pytest.raises(HardwareError, match=r"no host card 'qqq'; see"):
        find_host("qqq")
    with pytest.raises(HardwareError, match=r"no kernel card ''; see"):
        find_kernels("")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("a100_sxm/comm/nccl_2.27.3", "nvlink-3"),
        ("h200_sxm/comm/nccl_2.26.2", "nvlink-4"),
        ("b200_sxm/comm/nccl_2.29.2", "nvlink-5"),
        ("rtx_pro_6000_server/comm/nccl_2.29.2", "pcie-5-peer"),
    ],
)
def test_links_hold_the_fit_that_they_cite(table: str, name: str) -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(shared_file(f"data/kernels/{table}.parquet"))
    rows = rows[(rows.op_name == "alltoall") & (rows.num_gpus == 8) & (rows.nccl_dtype == "half")]
    sent_bytes = rows.message_size.to_numpy(float) * 2 * 7 / 8  # seven eighths leave the device
    time_s = rows.latency.to_numpy(float) * 1e-3
    columns = np.stack([1 / time_s, sent_bytes / time_s], axis=1)  # relative error: 1 = alpha / t + bytes / (BW t)
    (alpha_s, s_per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(rows)))
    link = find_link(name)
    assert link.latency_s.value == pytest.approx(alpha_s, rel=0.02)
    assert link.effective_bytes_per_s == pytest.approx(1 / s_per_byte, rel=0.02)


LINK = """
links:
  - name: {name}
    kind: pcie
    bytes_per_s: {{value: 4 GB/s, source: a test, kind: assumed}}
    latency_s: {{value: 3 us, source: a test, kind: assumed}}
    efficiency: {{value: 0.5, source: a test, kind: assumed}}
"""


def test_files_of_a_folder_are_merged(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(LINK.format(name="slow"))
    (tmp_path / "a.yaml").write_text(LINK.format(name="fast"))
    cards = read_cards(tmp_path)
    assert isinstance(cards, CardSet)
    assert [card.name for card in cards.links] == ["fast", "slow"]


def test_one_name_in_two_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(LINK.format(name="slow"))
    (tmp_path / "b.yaml").write_text(LINK.format(name="slow"))
    with pytest.raises(HardwareError, match=r"b\.yaml: links slow is also in a\.yaml; rename one"):
        read_cards(tmp_path)


def test_an_empty_library_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="holds no hardware cards"):
        read_cards(tmp_path)
