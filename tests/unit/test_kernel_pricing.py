"""Exchanges by fitted kernels: their laws at the ports, by hand counts, and what is refused."""

from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodels.expert_exchange import ExchangeCard, Shipment, exchange_s
from hwmodels.library import links_with, list_cards
from scenarios.errors import HardwareError, ScenarioError
from scenarios.schedule_specs import KERNEL_DEDUP, ExchangeSpec, FittedKernelName, ScheduleSpec
from sim.durations import ExchangeTime
from sim.pricing import price
from sim.setting import Setting
from tests.small import even_placement, reduced, tiny_cluster, tiny_model, tiny_setting, trace_of

MODEL = tiny_model(n_layers=1, n_experts=8, top_k=2, hidden_size=1024)


def card(kernel: str, link: str = "link") -> ExchangeCard:
    """The shipped constants of a kernel as if measured on the test link."""
    shipped = next(card for card in list_cards().exchanges if card.kernel == kernel)
    return shipped.model_copy(update={"link": link})


def setting(n_nodes: int = 1, **parts: Any) -> Setting:
    """Four devices of two experts; the one token of every device goes to experts 0 and 2, on devices 0 and 1."""
    n_devices = 4 * n_nodes
    trace = trace_of(np.tile([[[0], [2]]], (1, 1, n_devices)), 8, [1] * n_devices, moe_layers=(0,))
    return tiny_setting(MODEL, tiny_cluster(n_nodes, **parts), trace, tokens_per_device=1, steps=1)


def exchange(case: Setting, kind: str, **options: Any) -> ExchangeTime:
    schedule = ScheduleSpec.model_validate({"exchange": options})
    placement = even_placement(MODEL, case.cluster.n_devices)
    prices = price(case, placement, reduced(case, placement, schedule), schedule.exchange)
    duration = prices.per_chunk[kind][0][0]
    assert isinstance(duration, ExchangeTime)
    return duration


def shipment(copies: list[int], copy_bytes: float, **fields: Any) -> Shipment:
    usual = {"tokens": 1, "n_experts": 8, "top_k": 2, "n_devices": 4, "n_nodes": 1}
    return Shipment(copies=np.array(copies), copy_bytes=copy_bytes, **(usual | fields))


@pytest.mark.parametrize("kernel", ["deepep-low-latency", "deepep-normal", "nvl72-one-sided"])
def test_the_law_applies_to_the_copies_at_each_port(kernel: str) -> None:
    one = card(kernel)
    case = setting(exchanges=(one,))
    dispatch = exchange(case, "dispatch", kernel=kernel, dispatch_dtype="fp8")
    # Devices 0 and 1 keep one of their two copies; both receive one from each of the three others.
    assert dispatch.send_s[0] == pytest.approx(exchange_s(shipment([1, 1, 2, 2], 1024), one.dispatch, 100e9))
    assert dispatch.receive_s[0] == pytest.approx(exchange_s(shipment([3, 3, 0, 0], 1024), one.dispatch, 100e9))
    combine = exchange(case, "combine", kernel=kernel)
    assert combine.send_s[0] == pytest.approx(exchange_s(shipment([3, 3, 0, 0], 2048), one.combine, 100e9))


def test_a_two_sided_dispatch_begins_with_counts_and_combines_in_low_precision() -> None:
    one = card("nvl72-two-sided")
    assert one.prepare is not None and one.combine_low_precision is not None
    case = setting(exchanges=(one,))
    counts_s = exchange_s(shipment([0], 0), one.prepare, 100e9)
    dispatch_s = exchange_s(shipment([1, 1, 2, 2], 2048), one.dispatch, 100e9)
    assert exchange(case, "dispatch", kernel="nvl72-two-sided").send_s[0] == pytest.approx(counts_s + dispatch_s)
    combine = exchange(case, "combine", kernel="nvl72-two-sided", combine_dtype="nvfp4")
    low_s = exchange_s(shipment([3, 3, 0, 0], 1024 * 0.5625), one.combine_low_precision, 100e9)
    assert combine.send_s[0] == pytest.approx(low_s)


def test_between_nodes_the_law_of_the_network_counts() -> None:
    network = card("deepep-low-latency", "network")
    case = setting(2, exchanges=(network,))
    dispatch = exchange(case, "dispatch", kernel="deepep-low-latency", dispatch_dtype="fp8")
    # One expert a device: both lie in the first node, so every device of the second sends two copies there.
    load = shipment([0] * 4 + [2] * 4, 1024, n_devices=8, n_nodes=2)
    assert dispatch.send_s[0] == pytest.approx(exchange_s(load, network.dispatch, 10e9))


def test_a_kernel_that_was_not_measured_on_the_link_names_those_that_have_it() -> None:
    message = "kernel deepep-normal was not measured on link link, only on nvlink-4, ndr-ib; use kernel alpha-beta"
    with pytest.raises(HardwareError, match=message):
        exchange(setting(), "dispatch", kernel="deepep-normal")
    with pytest.raises(HardwareError, match="kernel nccl was not measured on link link, only on nvlink-3, nvlink-4"):
        exchange(setting(), "dispatch", kernel="nccl")


def test_nccl_sends_equal_parts_and_stays_inside_a_node() -> None:
    collectives = next(card for card in list_cards().collectives if card.name == "nvlink-4 nccl")
    times = exchange(setting(collectives=collectives), "dispatch", kernel="nccl")
    assert times.send_s[0, 2] > times.send_s[0, 0] > 5e-6
    with pytest.raises(HardwareError, match="inside a node only"):
        exchange(setting(2, collectives=collectives), "dispatch", kernel="nccl")


def test_experts_beside_chunks_lack_the_sms_of_normal_kernels() -> None:
    model = MODEL
    trace = trace_of(np.tile([[[0], [2]]], (1, 1, 8)), 8, [1] * 8, moe_layers=(0,))
    case = tiny_setting(model, tiny_cluster(exchanges=(card("deepep-normal"),)), trace, tokens_per_device=2, steps=1)
    placement = even_placement(model, 4)

    def experts_s(**options: Any) -> Any:
        schedule = ScheduleSpec.model_validate({"overlap": "chunked", "chunks": 2, "exchange": options})
        return price(case, placement, reduced(case, placement, schedule), schedule.exchange).per_chunk["experts"][0][0]

    # 20 of 100 SMs are taken.
    assert experts_s(kernel="deepep-normal", sms=20) == pytest.approx(experts_s(dedup="node") * 1.25)
    with pytest.raises(ScenarioError, match="sms 100 leaves none of the 100 SMs of round"):
        experts_s(kernel="deepep-normal", sms=100)


def test_every_kernel_was_measured_somewhere() -> None:
    assert {card.kernel for card in list_cards().exchanges} == set(get_args(FittedKernelName)) == set(KERNEL_DEDUP)
    assert all(links_with(kernel) for kernel in ("nccl", *get_args(FittedKernelName)))


def test_kernels_decide_what_is_sent_once() -> None:
    assert ExchangeSpec().dedup == "device"
    assert ExchangeSpec.model_validate({"kernel": "deepep-normal"}).dedup == "node"
    assert ExchangeSpec.model_validate({"kernel": "deepep-low-latency"}).dedup == "none"
    assert ExchangeSpec.model_validate({"kernel": "nccl", "dedup": "none"}).dedup == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "deepep-low-latency", "dedup": "node"}, "has dedup none, not node; leave dedup out"),
        ({"kernel": "deepep-normal", "law": "fifo"}, "timed as a whole: law port, not fifo"),
        ({"kernel": "nccl", "sms": 20}, "sms is an option of kernel deepep-normal, not of nccl"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExchangeSpec.model_validate(options)
