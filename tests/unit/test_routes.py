"""Transforms of routes against brute force and numbers of the papers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from placement.layout import ExpertLayout
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import PlacementError, PlacementInfeasible, ScenarioError, TraceError
from scenarios.routing_specs import RoutingSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import ScenarioSpec
from scenarios.workload_specs import SynthesisSpec, WorkloadSpec
from sim.bound.resources import resources
from sim.priced_steps import execute_schedule
from sim.run import run
from sim.session import placement_problem, reduced
from sim.setting import Setting, make_setting, open_trace
from sim.steps import chosen, kept_in_memory
from tests.small import even_placement, random_ids, tiny_model, trace_of
from traces.gate_weights import drawn_weights
from traces.routes import best_choices, highest, masked, nucleus, without_null
from traces.routing import RoutingTrace
from traces.stats import expert_loads

E, K, TOKENS = 16, 4, 60


def weighted(*, ordered: bool = False, unused_frac: float = 0.0, spread: float = 1.0) -> RoutingTrace:
    """Two layers with gate weights, in descending order or shuffled."""
    trace = trace_of(random_ids((2, K, TOKENS), E, 1, unused_frac), E, [20] * 3, weight_ordered=True)
    trace = replaced(trace, weights=drawn_weights(trace.ids, E, spread, np.random.default_rng(0)), weight_ordered=True)
    if ordered:
        return trace
    order = np.random.default_rng(1).permuted(np.broadcast_to(np.arange(K)[None, :, None], trace.ids.shape), axis=1)
    ids, weights = (np.take_along_axis(array, order, axis=1) for array in (trace.ids, trace.weights))
    return replaced(trace, ids=ids, weights=weights, weight_ordered=False)


def replaced(trace: RoutingTrace, **fields: Any) -> RoutingTrace:
    names = ("ids", "n_experts", "offsets", "positions", "moe_layers", "phase", "provenance", "weights", "variable_k")
    return RoutingTrace(**({name: getattr(trace, name) for name in names} | fields))


def choices(trace: RoutingTrace, layer: int, token: int) -> dict[int, float]:
    """Weight of every expert that a token has."""
    rows, weights = trace.ids[layer, :, token], trace.weights
    assert weights is not None
    return {int(e): float(w) for e, w in zip(rows, weights[layer, :, token], strict=True) if e < trace.n_experts}


def everywhere(trace: RoutingTrace) -> list[tuple[int, int]]:
    return [(layer, token) for layer in range(trace.n_layers) for token in range(trace.n_tokens)]


@pytest.mark.parametrize("unused_frac", [0.0, 0.3])
def test_the_best_choices_are_those_of_the_largest_weights(unused_frac: float) -> None:
    trace = weighted(unused_frac=unused_frac)
    got = best_choices(trace, 2)
    for where in everywhere(trace):
        before = sorted(choices(trace, *where).items(), key=lambda entry: -entry[1])
        assert sorted(choices(got, *where).values()) == sorted(weight for _, weight in before[:2])
        assert choices(got, *where).items() <= choices(trace, *where).items()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_a_nucleus_is_the_least_number_that_reaches_the_share(share: float) -> None:
    trace = weighted()
    got = nucleus(trace, share)
    for where in everywhere(trace):
        weights = sorted(choices(trace, *where).values(), reverse=True)
        enough = [n for n in range(1, K + 1) if sum(weights[:n]) >= share - 1e-3]
        assert len(choices(got, *where)) == (enough[0] if enough else K)
        assert choices(got, *where).items() <= choices(trace, *where).items()


def test_null_experts_take_their_share_from_the_least_weights() -> None:
    trace = weighted(unused_frac=0.2)
    kept, n_null = without_null(trace, 8), 8
    for layer in range(2):
        all_weights = sorted(w for token in range(TOKENS) for w in choices(trace, layer, token).values())
        left = sorted(w for token in range(TOKENS) for w in choices(kept, layer, token).values())
        assert len(left) == len(all_weights) - round(len(all_weights) * n_null / (E + n_null))
        assert left == all_weights[-len(left) :]


def test_longcat_flash_keeps_eight_of_twelve_choices() -> None:
    """512 experts and 256 of no cost, top-12: about 8 true ones (LongCat-Flash, arXiv 2509.01322, section 2.1)."""
    trace = trace_of(random_ids((1, 12, 2000), 512), 512)
    kept = without_null(trace, 256, np.random.default_rng(0))
    assert np.count_nonzero(kept.ids < 512) / 2000 == pytest.approx(8, abs=0.1)


def test_masked_choices_go_to_kept_experts_as_their_loads() -> None:
    trace = trace_of(random_ids((2, 2, 4000), E, 3), E)
    loads = expert_loads(trace)
    kept = highest(loads, 8)
    for layer in range(2):
        assert sorted(loads[layer])[-8:] == sorted(loads[layer][kept[layer]])
    got = masked(trace, kept, np.random.default_rng(0))
    stays = np.stack([np.isin(rows, experts) for rows, experts in zip(trace.ids, kept, strict=True)])
    assert (got.ids[stays] == trace.ids[stays]).all()
    assert (got.ids[:, 0] != got.ids[:, 1]).all()
    for layer, experts in enumerate(kept):
        assert np.isin(got.ids[layer], experts).all()
        gained = (expert_loads(got) - loads)[layer][experts]
        assert np.corrcoef(gained, loads[layer][experts])[0, 1] > 0.9


def test_a_pruned_model_has_the_experts_of_the_highest_scores_of_the_fitted_part() -> None:
    """Kept by gate weights of the fitted sequences in plain loops; numbers stand for the kept ones in their order."""
    weights = np.random.default_rng(1).dirichlet([1, 1], (2, 128)).transpose(0, 2, 1).astype(np.float16)
    trace = trace_of(random_ids((2, 2, 128), 8), 8, [16] * 8, weights=weights)
    fit = np.array([1, 4, 6])
    scores = np.zeros((2, 8))
    for layer in range(2):
        for sequence in fit:
            for token in range(16 * sequence, 16 * sequence + 16):
                for place in range(2):
                    scores[layer, trace.ids[layer, place, token]] += float(weights[layer, place, token])
    asked: dict[str, Any] = {"mask": {"keep": 0.5, "by": "weight", "prune": True}}
    got = chosen(trace, RoutingSpec.model_validate(asked), fit)
    assert (got.n_experts, got.ids.max()) == (4, 3)
    for layer in range(2):
        kept = sorted(np.argsort(-scores[layer])[:4])
        stays = np.isin(trace.ids[layer], kept)
        assert (np.array(kept)[got.ids[layer]][stays] == trace.ids[layer][stays]).all()
    with pytest.raises(TraceError, match="layers keep 2 to 3 experts"):
        chosen(trace, RoutingSpec.model_validate({"mask": {"experts": [[0, 1], [0, 1, 2]], "prune": True}}))


def test_as_many_experts_are_kept_as_fit() -> None:
    """Two layers of experts of two devices: room for five experts of each on a device keeps ten; for half an expert,
    none, which is told with what is short."""
    model, layout = tiny_model(n_experts=16), ExpertLayout(n_devices=2, devices_per_node=2)

    def kept(room: float) -> int | None:
        asked = {"mask": {"device": f"{room * model.expert_bytes} B", "prune": True}}
        return kept_in_memory(model, RoutingSpec.model_validate(asked), layout)

    assert len(model.moe_layers) == 2
    assert (kept(11.9), kept(10.0), kept(1000.0)) == (10, 10, 16)
    with pytest.raises(PlacementInfeasible, match=r"hold 0 experts of each layer, where a token takes 2; short by"):
        kept(1.0)


def test_a_mask_works_with_all_256_ids_of_a_byte() -> None:
    trace = trace_of(random_ids((1, 8, 300), 256), 256)
    assert trace.ids.dtype == np.uint8
    got = masked(trace, [list(range(240, 256))], np.random.default_rng(0))
    assert got.ids.min() >= 240
    assert all(len(set(token)) == 8 for token in got.ids[0].T)


PLAIN_TRACE = trace_of(random_ids((2, 2, 64), 8), 8)


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        ({"top_p": 0.5}, "top_p needs gate weights"),
        ({"top_k": 1}, "top_k needs gate weights"),
        ({"null_experts": 2}, "null_experts needs gate weights"),
        ({"mask": {"experts": [0]}}, "keeps 1 experts"),
        ({"mask": {"experts": [0, 9]}}, "up to number 9"),
        ({"mask": {"experts": [[0, 1], [2, 3], [4, 5]]}}, "3 lists of experts for 2 MoE layers"),
    ],
)
def test_routes_that_a_trace_cannot_give_are_refused(routing: dict[str, Any], text: str) -> None:
    with pytest.raises(TraceError, match=text):
        chosen(PLAIN_TRACE, RoutingSpec.model_validate(routing))


@pytest.mark.parametrize(
    "routing",
    [
        {"pad": True},
        {"drop": "weight"},
        {"null_by": "chance"},
        {"capacity_factor": 1, "group": "sequence", "pad": True},
        {"mask": {}},
        {"mask": {"keep": 0.5, "experts": [1]}},
    ],
)
def test_options_that_belong_to_nothing_are_refused(routing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"option of|group device or step|give one of"):
        RoutingSpec.model_validate(routing)


def setting_of(**routing: Any) -> Setting:
    model = tiny_model()
    workload = WorkloadSpec(
        synthetic=SynthesisSpec(tokens=1024, sequence_tokens=32, gate_spread=2.0),
        tokens_per_device=16,
        steps=4,
        routing=RoutingSpec.model_validate(routing),
    )
    return make_setting(
        model=model,
        cluster=ClusterSpec(node="h200-sxm-8"),
        parallel=ParallelSpec(),
        workload=workload,
        trace=open_trace(workload, model, Path()),
        seed=0,
    )


def used(setting: Setting) -> NDArray[np.bool_]:
    """Places that hold an expert, of the judged steps, bool[layer, k, step, device, token]."""
    batches = setting.batches
    return batches.trace.ids[:, :, batches.tokens] < 8


@pytest.mark.parametrize("routing", [{}, {"top_k": 1}, {"top_p": 0.4}, {"null_experts": 4}, {"capacity_factor": 1.0}])
def test_judged_and_fitted_steps_take_the_same_routes(routing: dict[str, Any]) -> None:
    setting = setting_of(**routing)
    assert setting.fit_batches is not None
    steps = setting.fit_batches()
    fitted = steps.trace.ids[:, :, steps.tokens] < 8
    assert fitted.mean() == pytest.approx(used(setting).mean(), abs=0.03)
    if setting.routes is not None:
        assert setting.routes.experts_per_token == pytest.approx(used(setting).sum(axis=1).mean())
    slots = reduced(setting, even_placement(setting.model, 8), ScheduleSpec()).slot_tokens
    assert slots.sum() == used(setting).sum()


def test_plans_are_fitted_on_choices_that_find_room() -> None:
    setting = setting_of(capacity_factor=1.0)
    assert setting.fit_batches is not None
    assert setting.fit_loads.sum() == np.count_nonzero(setting.fit_batches().trace.ids < 8)


def test_buffers_need_an_exchange_and_a_plan_that_they_fit() -> None:
    setting = setting_of(capacity_factor=1.0, pad=True)
    with pytest.raises(Exception, match="dedup: none"):
        reduced(setting, even_placement(setting.model, 8), ScheduleSpec())
    schedule = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}})
    slots = np.tile(np.arange(16) % 8, (2, 1))
    replicas = even_placement(setting.model, 8).from_slots(slots, 8, n_experts=8, name="replicas")
    with pytest.raises(Exception, match="without replicas"):
        reduced(setting, replicas, schedule)


@pytest.mark.parametrize(("group", "chunks"), [("device", 1), ("step", 1), ("device", 3), ("step", 4)])
def test_padded_buffers_are_sent_and_computed_whole(group: str, chunks: int) -> None:
    setting = setting_of(capacity_factor=1.5, pad=True, group=group)
    overlap = {"overlap": "chunked", "chunks": chunks} if chunks > 1 else {}
    schedule = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}, **overlap})
    reduction = reduced(setting, even_placement(setting.model, 8), schedule)
    rows = reduction.slot_tokens.reshape(2, 4, chunks, 8).sum(axis=2)
    assert (rows == 1.5 * 2 * 16 * 8 / 8).all()  # factor x k x tokens of a step / experts
    sent = reduction.ports.send_intra.reshape(2, 4, chunks, 8).sum(axis=2)
    assert (sent == 6 * 7).all()  # six rows to each of the seven other experts
    hierarchy = schedule.model_copy(update={"exchange": schedule.exchange.model_copy(update={"law": "fifo"})})
    assert reduced(setting, even_placement(setting.model, 8), hierarchy).pairs is not None


def test_solvers_know_the_transformed_routes() -> None:
    from scenarios.placement_specs import PlacementSpec
    from scenarios.schedule_specs import ExchangeSpec

    setting = setting_of(mask={"experts": [0, 1, 2, 3]})
    problem = placement_problem(setting, PlacementSpec(solver="greedy"), 0, ExchangeSpec())
    assert (problem.loads[:, 4:] == 0).all()
    with pytest.raises(PlacementError):
        placement_problem(setting, PlacementSpec(file="plan.json"), 0, ExchangeSpec())


@pytest.mark.parametrize(
    ("routing", "schedule"),
    [
        ({"capacity_factor": 1.0}, {}),
        ({"capacity_factor": 1.5, "pad": True}, {"exchange": {"dedup": "none"}}),
        ({"capacity_factor": 1.0, "pad": True, "group": "step"}, {"exchange": {"dedup": "none"}, "overlap": "chunked"}),
        ({"null_experts": 4}, {"overlap": "two-batch"}),
        ({"mask": {"keep": 0.5}}, {"overlap": "two-batch-prefill"}),
        ({"top_k": 1}, {"exchange": {"algorithm": "coherent"}}),
    ],
    ids=str,
)
def test_changed_routes_under_schedules_stay_below_their_bound(
    routing: dict[str, Any], schedule: dict[str, Any]
) -> None:
    setting, spec = setting_of(**routing), ScheduleSpec.model_validate(schedule)
    placement = even_placement(setting.model, 8)
    reduction = reduced(setting, placement, spec)
    times = [
        execute_schedule(setting, placement, reduction, spec.model_copy(update={"executor": name})).step_times_s
        for name in ("vector", "event")
    ]
    assert times[0] == pytest.approx(times[1], rel=1e-9)
    rows = resources(setting, placement, reduction, spec.exchange)
    assert 16 * 8 / times[0].mean() <= min(row.tokens_per_s for row in rows) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"card": "olmoe-1b-7b", "iterations": 2, "top_k": 4}}, "several runs of a layer .* memory.offload"),
        ({"workload": {"routing": {"capacity_factor": 1.0}}}, "activation looks at a request's past"),
    ],
)
def test_parts_that_do_not_go_together_are_named(changes: dict[str, Any], text: str) -> None:
    scenario: dict[str, Any] = {
        "name": "both",
        "model": "olmoe-1b-7b",
        "cluster": {"node": "h200-sxm-8"},
        "workload": {"synthetic": {"tokens": 512, "sequence_tokens": 32}, "tokens_per_device": 4, "steps": 2},
        "memory": {"offload": {"slots": 32, "prefetch": {"by": "activation", "width": 4}}},
    }
    scenario["workload"] |= changes.get("workload", {})
    spec = ScenarioSpec.model_validate(scenario | {name: c for name, c in changes.items() if name != "workload"})
    with pytest.raises(ScenarioError, match=text):
        run(spec, Path(), "0")
