"""FSMoE (arXiv 2501.10714, section 5): one layer in r chunks, gradients between the last dispatch and the combines."""

import numpy as np
import pytest

from scenarios.schedule_specs import ExchangeSpec
from scenarios.training_specs import TrainingSpec
from sim.durations import Duration, ExchangeTime
from sim.filling import idle_windows_s
from sim.forward import build_step
from sim.laws import port
from sim.policies import TRAINING
from sim.policies.gradients import FILL
from sim.program import OpList, compile_program
from sim.training import training_step
from sim.vector import execute
from tests.small import tiny_model


def fsmoe_layer(r: int) -> OpList:
    """The backward pass of one layer alone, with the pieces of order fill."""
    forward = build_step(
        tiny_model(n_layers=1), chunks=r, attention_tp=1, exchange=ExchangeSpec.model_validate({"algorithm": "sliced"})
    )
    return compile_program(
        TRAINING["chunked", "fill"], training_step(forward, {("reduce.head", -1): 1}, TrainingSpec())
    )


def fsmoe_durations(op_list: OpList, times: dict[str, np.ndarray], piece_s: np.ndarray) -> list[Duration]:
    """Times of the layer's backward works; the first piece takes `piece_s`, all else no time."""
    durations: list[Duration] = []
    for op in op_list.ops:
        time_s = times.get(op.work.kind, np.zeros_like(piece_s))[:, None]
        if op.work.kind == FILL and op.work.chunk == 0:
            time_s = piece_s[:, None]
        durations.append(ExchangeTime(send_s=time_s, receive_s=time_s, group_size=1) if op.is_exchange else time_s)
    return durations


def drawn(r: int) -> dict[str, np.ndarray]:
    a2a, ag, experts = np.random.default_rng(r).lognormal(0, 1, (3, 1000))
    kinds = {"dispatch": a2a, "combine": a2a, "forward": ag, "collect": ag, "experts": experts}
    return {f"{kind}.backward": times for kind, times in kinds.items()}


@pytest.mark.parametrize("r", [1, 2, 4])
def test_a_layer_with_gradients_meets_the_cases_of_fsmoe(r: int) -> None:
    """Case 1, 2 r t_a2a + t_gar, where gradients exceed what is idle; else the layer takes no longer than without."""
    op_list, times = fsmoe_layer(r), drawn(r)
    a2a, ag, experts = (times[f"{kind}.backward"] for kind in ("dispatch", "forward", "experts"))
    without = np.maximum.reduce(
        [2 * a2a + 2 * ag + r * experts, 2 * r * a2a + 2 * ag, 2 * a2a + 2 * r * ag]
    )  # cases 2, 3 and 4
    gar = np.random.default_rng(99).lognormal(0, 1.5, 1000)
    end_s = execute(op_list, fsmoe_durations(op_list, times, gar)).end_s[-1, :, 0]
    want = np.maximum(without, 2 * r * a2a + gar)
    case_3 = (2 * r * a2a + 2 * ag >= without * (1 - 1e-12)) & (r > 1)
    np.testing.assert_allclose(end_s[~case_3], want[~case_3], rtol=1e-9)
    assert (end_s[case_3] >= want[case_3] * (1 - 1e-9)).all()


@pytest.mark.parametrize("r", [1, 2, 4])
def test_windows_add_up_to_those_of_fsmoe(r: int) -> None:
    """Idle time of the ports, section 5: r e + ag + rs - 2 (r - 1) a; ag + rs; r (ag + rs) - 2 (r - 1) a."""
    op_list, times = fsmoe_layer(r), drawn(r)
    a2a, ag, experts = (times[f"{kind}.backward"] for kind in ("dispatch", "forward", "experts"))
    for place in range(20):
        one = {kind: values[place : place + 1] for kind, values in times.items()}
        windows = idle_windows_s(op_list, fsmoe_durations(op_list, one, np.zeros(1)), port)
        a, g, e = a2a[place], ag[place], experts[place]
        q1, q2, q3 = a > g, r * e > 2 * (r - 1) * a, r * e > (r - 1) * 2 * g
        case_2 = r * e + 2 * g - 2 * (r - 1) * a
        want = case_2 if (q1 and q2) or (not q1 and q3) else 2 * g if q1 else 2 * r * g - 2 * (r - 1) * a
        assert sum(windows) == pytest.approx(want)
