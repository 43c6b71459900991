"""Fused kernels and DeepSeek's two-batch orders against closed forms, on devices that are all alike."""

import numpy as np
import pytest

from sim.durations import Duration, ExchangeTime
from sim.events import execute_events
from sim.policies import POLICIES
from sim.program import OpList, compile_program
from sim.tile_pricing import exchange_slowdown, fused_time_s
from sim.vector import execute
from tests.oracles.random_steps import make_step

N_DEVICES = 3


def exchange(time_s: float) -> ExchangeTime:
    both = np.full(N_DEVICES, time_s)
    return ExchangeTime(send_s=both, receive_s=both, group_size=N_DEVICES)


def priced(op_list: OpList, times_s: dict[str, float]) -> list[Duration]:
    return [
        exchange(times_s[op.work.kind]) if op.is_exchange else np.full(N_DEVICES, times_s[op.work.kind])
        for op in op_list.ops
    ]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_tiles_take_the_closed_form(n: int, seed: int) -> None:
    """max(computing, travelling) + first tile + tail, exact for any ratio of the two."""
    rng = np.random.default_rng(seed)
    own, rows, columns, there, back, latency_s = rng.lognormal(0.0, 1.5, 6)
    op_list = compile_program(POLICIES["tiles"], make_step("tiles", [(False, False)], n, collectives=False))
    durations: list[Duration] = []
    for op in op_list.ops:
        chunk = op.work.chunk
        if op.is_exchange:
            whole = there if op.work.kind == "dispatch" else back
            durations.append(exchange(whole / n + (latency_s if chunk == 0 else 0.0)))
        elif op.work.kind == "experts":
            durations.append(np.full(N_DEVICES, own if chunk == 0 else (rows if chunk <= n else columns) / n))
        else:
            durations.append(np.zeros(N_DEVICES))
    expected_s = fused_time_s((own, rows, columns), (there, back), n, latency_s)
    assert execute(op_list, durations).end_s[-1] == pytest.approx(expected_s, rel=1e-12)
    bound_s = max(own + rows + columns, there + back)
    assert bound_s <= expected_s


def test_many_tiles_approach_the_larger_of_computing_and_travelling() -> None:
    """Comet: max(T_gemm, T_comm); here all computing hides both exchanges, but for the first and last tile."""
    times = [fused_time_s((1.0, 7.0, 4.0), (5.0, 3.0), n) for n in (1, 4, 16, 1024)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(12.0, rel=1e-3)


def test_more_sms_carry_tokens_faster_and_multiply_slower() -> None:
    few, many = exchange_slowdown(4, 153e9), exchange_slowdown(40, 153e9)
    assert few["combine"] == pytest.approx(153 / 17.74 / 4, rel=0.06)
    assert 1 < many["combine"] < 1.01 < few["dispatch"] < few["combine"]


def test_a_message_is_awaited_by_its_receiver_alone_in_a_persistent_kernel() -> None:
    """Device 2 is late and exchanges nothing: law fifo lets the others end without it, law port does not."""
    op_list = compile_program(POLICIES["persistent"], make_step("persistent", [(False, False)], 2, collectives=False))
    message_s = np.zeros((1, 3, 3))
    message_s[0, 0, 1] = message_s[0, 1, 0] = 1.0
    port = exchange(1.0)
    packet = ExchangeTime(send_s=port.send_s, receive_s=port.receive_s, group_size=3, message_s=message_s)
    durations: list[Duration] = [packet if op.is_exchange else np.ones(N_DEVICES) for op in op_list.ops]
    start_s = np.array([0.0, 0.0, 100.0])
    free = execute_events(op_list, durations, start_s, law="fifo").end_s[-1]
    assert free[:2].max() < 20
    held_port = [exchange(1.0) if op.is_exchange else np.ones(N_DEVICES) for op in op_list.ops]
    held = execute_events(op_list, held_port, start_s).end_s[-1]
    assert held.min() > 100


LAYERS = 3
SHORT = {"attention": 3.0, "projections": 2.0, "gate": 0.5, "shared": 1.0, "experts": 5.0, "head": 2.0}


def computing_s(op_list: OpList) -> float:
    return sum(SHORT[op.work.kind] for op in op_list.ops if not op.is_exchange)


def test_prefill_hides_what_its_windows_hold() -> None:
    """DISPATCH_B behind ATTN_A, DISPATCH_A behind MLP_B, COMBINE_B behind MLP_A, COMBINE_A behind ATTN_B: only the last
    COMBINE_A is seen, beside SHARED_B before it; SHARED_A and the heads wait for nothing else."""
    op_list = compile_program(
        POLICIES["two-batch-prefill"], make_step("two-batch-prefill", [(False, True)] * LAYERS, 2, collectives=False)
    )
    for combine_s in (1.0, 3.5):
        durations = priced(op_list, {**SHORT, "dispatch": 3.0, "combine": combine_s})
        seen_s = max(0.0, combine_s - 2 * SHORT["shared"] - SHORT["head"])
        assert execute(op_list, durations).end_s.max() == pytest.approx(computing_s(op_list) + seen_s, rel=1e-12)


def test_prefill_follows_the_published_order() -> None:
    op_list = compile_program(
        POLICIES["two-batch-prefill"], make_step("two-batch-prefill", [(False, True)] * LAYERS, 2, collectives=False)
    )
    names = {"attention": "ATTN", "shared": "SHARED", "experts": "MLP", "dispatch": "DISPATCH", "combine": "COMBINE"}

    def order(on_ports: bool) -> str:
        ops = [op for op in op_list.ops if op.is_exchange == on_ports and op.work.kind in names]
        return " ".join(f"{names[op.work.kind]}_{'AB'[op.work.chunk]}" for op in ops)

    assert "ATTN_B SHARED_A ATTN_A MLP_B MLP_A SHARED_B ATTN_B" in order(on_ports=False)
    assert "COMBINE_A DISPATCH_B DISPATCH_A COMBINE_B COMBINE_A" in order(on_ports=True)


def test_decode_hides_what_its_windows_hold() -> None:
    """DISPATCH behind SHARED and ATTN0, COMBINE behind ATTN1 of the other batch; at the end B has no other batch."""
    op_list = compile_program(
        POLICIES["two-batch-decode"], make_step("two-batch-decode", [(False, True)] * LAYERS, 2, collectives=False)
    )
    durations = priced(op_list, {**SHORT, "dispatch": 3.0, "combine": SHORT["attention"] + SHORT["gate"]})
    seen_s = (3.0 - SHORT["shared"]) + (SHORT["attention"] + SHORT["gate"] - SHORT["head"])
    assert execute(op_list, durations).end_s.max() == pytest.approx(computing_s(op_list) + seen_s, rel=1e-12)
