"""Every law of link sharing through one suite; one that is named but missing in either executor fails it."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import reduce_trace
from scenarios.errors import HardwareError
from scenarios.schedule_specs import DedupName, ExchangeSpec, LawName
from sim.durations import ExchangeTime, Seconds
from sim.event_laws import EXCHANGES
from sim.events import execute_events
from sim.laws import LAWS, MAXMIN_DEVICES
from sim.program import Program, Work, compile_ops
from tests.oracles.random_steps import adversarial_s
from traces.routing import Provenance, RoutingTrace

BY_MESSAGE = sorted(set(LAWS) - {"port"})


def exchange(seed: int, n_devices: int, law: str) -> tuple[Seconds, Seconds, ExchangeTime]:
    """(start_s, receive_free_s, time) of a random exchange whose ports have to work for all their messages."""
    rng = np.random.default_rng([seed, n_devices])
    kind = ["heavy tail", "ties", "mixed"][seed % 3]
    message_s = adversarial_s(rng, (1 + seed % 2, n_devices, n_devices), kind)
    latency_s = float(rng.random())
    time = ExchangeTime(
        send_s=latency_s + message_s.sum(axis=2).max(axis=0),
        receive_s=latency_s + message_s.sum(axis=1).max(axis=0),
        group_size=n_devices,
        message_s=None if law == "port" else message_s,
        latency_s=latency_s,
    )
    return adversarial_s(rng, (n_devices,), kind), adversarial_s(rng, (n_devices,), kind), time


def ends_s(law: str, start_s: Seconds, free_s: Seconds, time: ExchangeTime) -> tuple[Seconds, Seconds]:
    """(send_end_s, end_s) by a law; nan where it forgets to write."""
    send_end_s, end_s = np.full_like(start_s, np.nan), np.full_like(start_s, np.nan)
    LAWS[law](start_s, free_s, time, send_end_s, end_s)
    return send_end_s, end_s


def test_names_match_the_scenario_and_both_executors() -> None:
    assert set(get_args(LawName)) == set(LAWS) == set(EXCHANGES)


@pytest.mark.parametrize("dedup", get_args(DedupName))
def test_every_deduplication_is_known_to_the_reduction(dedup: DedupName) -> None:
    """Devices 0 to 3 in two nodes hold experts 0-1, 2-3, 4-5 and 6-7, and one token each.

    Every token visits three experts on two devices of the other node: it crosses three times as an expert's, twice as
    a device's, and once as a node's.
    """
    assert ExchangeSpec(dedup=dedup).dedup == dedup
    ids = np.array([[[4, 4, 0, 0], [5, 5, 1, 1], [6, 6, 2, 2]]], np.uint8)
    trace = RoutingTrace(
        ids=ids,
        n_experts=8,
        offsets=np.array([0, 4]),
        positions=np.arange(4, dtype=np.int32),
        moe_layers=(0,),
        phase="decode",
        provenance=Provenance(model="test", source="test", kind="synthetic"),
    )
    placement = Placement.from_slots([list(range(8))], 4, n_experts=8, name="test")
    layout = ExpertLayout(n_devices=4, devices_per_node=2)
    reduced = reduce_trace(trace, np.arange(4).reshape(1, 4, 1), placement, layout, dedup=dedup)
    crossings = {"none": 3, "device": 2, "node": 1}[dedup]
    assert reduced.ports.send_inter.tolist() == [[[crossings] * 4]]


@pytest.mark.parametrize("n_devices", [1, 2, 5])
@pytest.mark.parametrize("law", LAWS)
class TestLaw:
    def test_nothing_ends_before_it_can(self, law: str, n_devices: int) -> None:
        for seed in range(10):
            start_s, free_s, time = exchange(seed, n_devices, law)
            send_end_s, end_s = ends_s(law, start_s, free_s, time)
            slack = 1 - 1e-12
            assert (send_end_s >= (start_s + time.send_s) * slack).all()
            assert (end_s >= send_end_s).all()
            assert (end_s >= (free_s + time.receive_s - time.latency_s) * slack).all()

    def test_law_port_is_a_lower_bound(self, law: str, n_devices: int) -> None:
        """Of the last end, when all start together: a port cannot be faster than its bytes."""
        for seed in range(10):
            start_s, _, time = exchange(seed, n_devices, law)
            start_s = np.full_like(start_s, 3.0)
            bound_s = ends_s("port", start_s, start_s, replace(time, message_s=None))[1].max()
            assert ends_s(law, start_s, start_s, time)[1].max() >= bound_s * (1 - 1e-12)

    def test_without_bytes_only_the_latency_is_left(self, law: str, n_devices: int) -> None:
        start_s = np.full(n_devices, 2.0)
        nothing = np.zeros((1, n_devices, n_devices))
        ports_s = np.full(n_devices, 0.25)
        time = ExchangeTime(send_s=ports_s, receive_s=ports_s, group_size=n_devices, message_s=nothing, latency_s=0.25)
        for found_s in ends_s(law, start_s, start_s, time):
            assert found_s.tolist() == [2.25] * n_devices

    def test_arguments_are_left_alone(self, law: str, n_devices: int) -> None:
        start_s, free_s, time = exchange(1, n_devices, law)
        arrays = [start_s, free_s, time.send_s, time.receive_s]
        arrays += [] if time.message_s is None else [time.message_s]
        for array in arrays:
            array.setflags(write=False)
        assert np.isfinite(ends_s(law, start_s, free_s, time)).all()

    def test_batches_of_any_shape(self, law: str, n_devices: int) -> None:
        """[2, 3, device]: each step as if alone."""
        rows = [[exchange(6 * i + 2 * j, n_devices, law) for j in range(3)] for i in range(2)]
        time = rows[0][0][2]

        def batch(name: str) -> Seconds:
            return np.array([[getattr(row[2], name) for row in line] for line in rows])

        whole = replace(
            time,
            send_s=batch("send_s"),
            receive_s=batch("receive_s"),
            message_s=None if time.message_s is None else batch("message_s"),
        )
        starts_s, frees_s = (np.array([[row[i] for row in line] for line in rows]) for i in range(2))
        together = ends_s(law, starts_s, frees_s, whole)
        for i, j in np.ndindex(2, 3):
            alone = ends_s(law, starts_s[i, j], frees_s[i, j], replace(rows[i][j][2], latency_s=time.latency_s))
            np.testing.assert_allclose([part[i, j] for part in together], alone, rtol=1e-12)


@pytest.mark.parametrize("law", BY_MESSAGE)
def test_a_law_of_messages_needs_them(law: str) -> None:
    start_s, free_s, time = exchange(0, 3, "port")
    with pytest.raises(HardwareError, match="needs the time of every message; use law port"):
        ends_s(law, start_s, free_s, time)


def test_law_maxmin_is_for_few_devices() -> None:
    n_devices = MAXMIN_DEVICES + 1
    zeros = np.zeros(n_devices)
    time = ExchangeTime(
        send_s=zeros, receive_s=zeros, group_size=n_devices, message_s=np.zeros((1, n_devices, n_devices))
    )
    with pytest.raises(HardwareError, match=f"at most {MAXMIN_DEVICES} devices, not {n_devices}: use port"):
        ends_s("maxmin", zeros, zeros, time)
    program = Program()
    program.exchange(Work("dispatch"), after=None)
    with pytest.raises(HardwareError, match=f"at most {MAXMIN_DEVICES} devices, not {n_devices}: use port"):
        execute_events(compile_ops(program.ops), [time], law="maxmin")
