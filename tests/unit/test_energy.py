"""Energy and cost of tokens against sums by hand."""

from pathlib import Path
from typing import Any

import pytest

from hwmodels.devices import Device
from hwmodels.library import find_device
from scenarios.errors import ScenarioError
from scenarios.specs import PricesSpec, ScenarioSpec
from sim.energy import cost_metrics, energy_basis
from sim.run import run
from tests.small import random_trace, tiny_cluster, tiny_model, tiny_setting

REQUESTS, CONTEXT = 4, 512


def scenario(**sections: Any) -> ScenarioSpec:
    """One device, one layer of two experts that every token visits."""
    usual: dict[str, Any] = {
        "name": "energy",
        "model": {
            "n_layers": 1, "hidden_size": 512, "vocab_size": 1024, "n_experts": 2, "top_k": 2,
            "expert_intermediate_size": 256, "weight_dtype": "fp16", "activation_dtype": "fp16", "kv_dtype": "fp16",
            "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 2, "head_dim": 64},
        },
        "cluster": {"node": "logic-pim-4", "devices_per_node": 1},
        "workload": {
            "synthetic": {"tokens": 1024}, "tokens_per_device": REQUESTS, "context_tokens": CONTEXT, "steps": 2,
        },
    }  # fmt: skip
    return ScenarioSpec.model_validate(usual | sections)


def metrics(**sections: Any) -> dict[str, float]:
    return run(scenario(**sections), Path(), "test").tables[0].results[0].metrics


def step_j(*, pim: bool) -> float:
    """Weights: q 512 x 512, k and v 2 x 512 x 128, output 512 x 512, router 2 x 512, head 1024 x 512, experts."""
    card = find_device("logic-pim")
    assert card.read_j_per_byte is not None and card.flop_j is not None and card.pim is not None
    units = card.pim
    assert units.read_j_per_byte is not None and units.flop_j is not None
    dense = 2 * 512 * 512 + 2 * 512 * 128 + 2 * 512 + 1024 * 512
    experts, cached = 2 * 3 * 512 * 256, REQUESTS * CONTEXT * 2 * 2 * 64
    own = (2.0 * REQUESTS * dense, 2.0 * dense)
    near = (2.0 * REQUESTS * experts + 4.0 * REQUESTS * CONTEXT * 8 * 64, 2.0 * (experts + cached))
    side = units if pim else card
    assert side.read_j_per_byte is not None and side.flop_j is not None
    own_j = own[0] * card.flop_j.value + own[1] * card.read_j_per_byte.value
    return own_j + near[0] * side.flop_j.value + near[1] * side.read_j_per_byte.value


@pytest.mark.parametrize("pim", [False, True])
def test_energy_counts_every_weight_and_cached_value_once_on_the_unit_that_reads_it(pim: bool) -> None:
    """Experts of 4 tokens and attention of 4 FLOP a byte are below Logic-PIM's crossover, so that it does both."""
    got = metrics(schedule={"pim": "by-operation" if pim else "none"})["energy_j_per_token"]
    assert got == pytest.approx(step_j(pim=pim) / REQUESTS, rel=1e-12)


def test_energy_of_a_card_without_access_energies_is_power_times_time() -> None:
    found = metrics(cluster={"node": "h100-sxm-8", "devices_per_node": 1})
    assert found["energy_j_per_token"] == pytest.approx(700 / found["tokens_per_s"])


def test_energy_that_nobody_states_is_not_guessed() -> None:
    card = find_device("h100-sxm").model_copy(update={"power_w": None})
    cluster = tiny_cluster(1, 1)
    device = Device(card=card, kernels=cluster.device.kernels)
    model = tiny_model()
    setting = tiny_setting(model, tiny_cluster(1, 1, device=device), random_trace(model))
    assert energy_basis(setting) is None
    with pytest.raises(ScenarioError, match=r"h100-sxm states neither power nor energies"):
        cost_metrics(setting, PricesSpec(device="1 USD", lifetime="1 a", energy="0.1 USD/kWh"), {"tokens_per_s": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match=r"states no price; give prices\.device"):
        cost_metrics(setting, PricesSpec(lifetime="1 a"), {"tokens_per_s": 1.0})  # type: ignore[arg-type]


def test_cost_is_what_is_paid_off_and_the_energy() -> None:
    """31,536 USD over a year of 365 d used half: 0.002 USD/s, and 700 W at 0.36 USD/kWh, 1e-7 USD/J: 7e-5 USD/s."""
    prices = {"device": "30 kUSD", "node": "1536 USD", "lifetime": "365 d", "used": 0.5, "energy": "0.36 USD/kWh"}
    found = metrics(cluster={"node": "h100-sxm-8", "devices_per_node": 1}, prices=prices)
    assert found["cost_usd_per_mtok"] == pytest.approx((0.002 + 7e-5) / found["tokens_per_s"] * 1e6)
    assert "cost_usd_per_mtok" not in metrics()


@pytest.mark.parametrize(
    ("cluster", "basis"),
    [({"node": "logic-pim-4"}, "accesses and multiplications"), ({"node": "h100-sxm-8"}, "power x time")],
)
def test_results_say_what_energies_go_by(cluster: dict[str, Any], basis: str) -> None:
    found = run(scenario(cluster=cluster | {"devices_per_node": 1}), Path(), "test").constants
    assert [c.value for c in found if c.name == "energy_j_per_token"] == [basis]
