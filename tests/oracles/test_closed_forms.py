"""Steps whose times follow from a formula or a calculation by hand; both executors must give exactly those."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from sim.durations import Duration, ExchangeTime
from sim.events import execute_events
from sim.laws import LAWS, fair_rates, fluid_ends_s
from sim.policies import POLICIES
from sim.program import OpList, Program, Step, Work, compile_ops, compile_program
from sim.vector import Finished, execute
from tests.oracles.random_steps import make_layer, make_step
from tests.oracles.textbook import fair_shares


def ports(send_s: ArrayLike, receive_s: ArrayLike) -> ExchangeTime:
    sends_s, receives_s = np.array(send_s, np.float64), np.array(receive_s, np.float64)
    return ExchangeTime(send_s=sends_s, receive_s=receives_s, group_size=sends_s.shape[-1])


def messages(*kinds: ArrayLike, latency_s: float = 0.0) -> ExchangeTime:
    """Message times [source, destination] of each kind of port; port times are never to be read."""
    message_s = np.array(kinds, np.float64)
    unread = np.full(message_s.shape[-1], np.nan)
    return ExchangeTime(
        send_s=unread, receive_s=unread, group_size=len(unread), message_s=message_s, latency_s=latency_s
    )


def run(op_list: OpList, durations: list[Duration], law: str = "port", start_s: ArrayLike | None = None) -> Finished:
    """What both executors find; they must agree."""
    starts_s = None if start_s is None else np.array(start_s, np.float64)
    vector = execute(op_list, durations, starts_s, law=LAWS[law])
    event = execute_events(op_list, durations, starts_s, law=law)
    np.testing.assert_allclose(event.end_s, vector.end_s, rtol=1e-12)
    np.testing.assert_allclose(event.send_end_s, vector.send_end_s, rtol=1e-12)
    return vector


def one_exchange(time: ExchangeTime, law: str, start_s: ArrayLike) -> tuple[list[float], list[float]]:
    """(send ends, ends) of a single exchange that device d may start at start_s[d]."""
    program = Program()
    program.exchange(Work("dispatch"), after=None)
    finished = run(compile_ops(program.ops), [time], law, start_s)
    return finished.send_end_s[0].tolist(), finished.end_s[0].tolist()


def after_computing(computed_s: ArrayLike, time: ExchangeTime, law: str) -> tuple[list[float], list[float]]:
    """(send ends, ends) of an exchange that device d starts at computed_s[d]; its receive lane is free from 0 on."""
    program = Program()
    program.exchange(Work("dispatch"), after=program.compute(Work("attention"), after=None))
    finished = run(compile_ops(program.ops), [np.array(computed_s, np.float64), time], law)
    return finished.send_end_s[1].tolist(), finished.end_s[1].tolist()


class TestSteps:
    def test_a_balanced_sequential_step_lasts_as_long_as_all_its_operations(self) -> None:
        step = Step(layers=(make_layer(0, (0,), (True, False), collectives=True),) * 2, head=Work("head"))
        moe = Step(layers=(make_layer(0, (0,), (False, True), collectives=True),) * 2, head=Work("head"))
        for each in (step, moe):
            op_list = compile_program(POLICIES["none"], each)
            times_s = [float(2**index) for index in range(len(op_list.ops))]
            durations: list[Duration] = [
                ports([t, t], [t, t]) if op.is_exchange else np.array([t, t])
                for op, t in zip(op_list.ops, times_s, strict=True)
            ]
            assert run(op_list, durations).end_s[-1].tolist() == [sum(times_s)] * 2

    @pytest.mark.parametrize("n_chunks", [1, 2, 3, 8])
    @pytest.mark.parametrize(("dispatch_s", "experts_s", "combine_s"), [(2, 1, 3), (1, 4, 2), (3, 3, 3), (5, 1, 0.5)])
    def test_a_pipeline_of_equal_chunks(
        self, n_chunks: int, dispatch_s: float, experts_s: float, combine_s: float
    ) -> None:
        """T = max(r (d + c), d + e + r c, r d + e + c, d + r e + c) for r chunks on balanced devices.

        Dispatches D1..Dr and combines C1..Cr share the ports in this order; experts E1..Er have the compute lane.
          D_k = k d;  E_k = max(D_k, E_(k-1)) + e = d + (k-1) max(d, e) + e;  C_k = max(D_r, C_(k-1), E_k) + c.
        Unrolled, C_r = max(r d + r c, max over k of E_k + (r-k+1) c). The inner term is linear in k, so it is
        largest at k = 1 (d + e + r c) or k = r (d + (r-1) max(d, e) + e + c).
        """
        layer = make_layer(0, range(n_chunks), (False, False), collectives=False)
        op_list = compile_program(POLICIES["chunked"], Step(layers=(layer,), head=Work("head")))
        chunk_s = {"dispatch": dispatch_s, "experts": experts_s, "combine": combine_s}
        durations: list[Duration] = []
        for op in op_list.ops:
            both = [chunk_s.get(op.work.kind, 0.0)] * 2
            durations.append(ports(both, both) if op.is_exchange else np.array(both))
        r, d, e, c = n_chunks, dispatch_s, experts_s, combine_s
        want_s = max(r * (d + c), d + e + r * c, r * d + e + c, d + r * e + c)
        assert run(op_list, durations).end_s[-1].tolist() == [want_s, want_s]

    @pytest.mark.parametrize("n_layers", [1, 2, 5])
    @pytest.mark.parametrize(
        ("attention_s", "dispatch_s", "experts_s", "combine_s"), [(3, 2, 4, 3), (2, 2, 2, 2), (5, 0, 4, 1)]
    )
    def test_two_batches_hide_all_transfers_that_are_shorter_than_the_work_beside_them(
        self, n_layers: int, attention_s: float, dispatch_s: float, experts_s: float, combine_s: float
    ) -> None:
        """T = 2 L (a + e) + max(h, c) + h where d <= a, d <= e and c <= e, for two equal microbatches.

        D0 travels while A1 computes, D1 beside E0, C0 beside E1, C1 beside the next A0: the compute lane never waits
        until the last combine, which one head of h = 0.5 hides in part.
        """
        step = make_step("two-batch", [(False, False)] * n_layers, 2, collectives=False)
        op_list = compile_program(POLICIES["two-batch"], step)
        times_s = {"attention": attention_s, "dispatch": dispatch_s, "experts": experts_s, "combine": combine_s}
        times_s |= {"gate": 0.0, "head": 0.5}
        durations: list[Duration] = []
        for op in op_list.ops:
            both = [float(times_s[op.work.kind])] * 2
            durations.append(ports(both, both) if op.is_exchange else np.array(both))
        want_s = 2 * n_layers * (attention_s + experts_s) + max(0.5, combine_s) + 0.5
        assert run(op_list, durations).end_s.max(axis=0).tolist() == [want_s, want_s]

    def test_shared_experts_hide_the_first_chunks_journey(self) -> None:
        """Attention 1, gate 1; dispatch 2 to 5 while shared experts compute 2 to 6; experts to 8; combine to 11."""
        layer = make_layer(0, (0,), (False, True), collectives=False)
        op_list = compile_program(POLICIES["chunked"], Step(layers=(layer,), head=Work("head")))
        times_s = {"attention": 1, "gate": 1, "dispatch": 3, "shared": 4, "experts": 2, "combine": 3, "head": 0.5}
        durations: list[Duration] = []
        for op in op_list.ops:
            both = [float(times_s[op.work.kind])] * 2
            durations.append(ports(both, both) if op.is_exchange else np.array(both))
        ends = dict(zip((op.work.kind for op in op_list.ops), run(op_list, durations).end_s, strict=True))
        assert {kind: end_s[0] for kind, end_s in ends.items()} == {
            "attention": 1, "gate": 2, "dispatch": 5, "shared": 6, "experts": 8, "combine": 11, "head": 11.5
        }  # fmt: skip


class TestPort:
    def test_from_one_moment_on_an_exchange_lasts_as_long_as_its_slowest_port(self) -> None:
        rng = np.random.default_rng(0)
        send_s, receive_s = rng.random(5), rng.random(5)
        sent, ended = one_exchange(ports(send_s, receive_s), "port", [1.0] * 5)
        assert sent == (1 + send_s).tolist()
        assert ended == np.maximum(1 + receive_s, (1 + send_s).max()).tolist()
        assert max(ended) == 1 + max(send_s.max(), receive_s.max())

    def test_nobody_ends_before_the_last_device_has_sent(self) -> None:
        """Device 1 sends from 3 to 5; device 0 has received at 0 + 2."""
        assert after_computing([0, 3], ports([2, 2], [2, 2]), "port") == ([2, 5], [5, 5])

    def test_bytes_are_received_before_the_receiver_itself_starts(self) -> None:
        """Device 1 begins at 3, but its receive port has worked since device 0 began to send: 0 + 4, not 3 + 4."""
        assert after_computing([0, 3], ports([2, 0.5], [1, 4]), "port") == ([2, 3.5], [3.5, 4])

    def test_a_receive_port_opens_when_its_lane_is_free(self) -> None:
        """The first exchange holds receive lane 0 until 4 and lane 1 until 1, send lanes until 1: the second one
        begins to send at 1 and ends at 4 + 3 and 1 + 3."""
        program = Program()
        first = program.exchange(Work("combine"), after=None)
        program.exchange(Work("dispatch"), after=None)
        assert first == 0
        finished = run(compile_ops(program.ops), [ports([1, 1], [4, 1]), ports([1, 1], [3, 3])])
        assert [end_s.tolist() for end_s in finished.end_s] == [[4, 1], [7, 4]]
        assert [end_s.tolist() for end_s in finished.send_end_s] == [[1, 1], [2, 2]]

    def test_groups_do_not_wait_for_each_other(self) -> None:
        four = np.array([1.0, 2.0, 3.0, 4.0])
        time = ExchangeTime(send_s=four, receive_s=np.zeros(4), group_size=2)
        assert one_exchange(time, "port", [0, 0, 10, 20])[1] == [2, 2, 24, 24]


class TestFifo:
    @pytest.mark.parametrize("n_devices", [2, 3, 5, 8])
    def test_ring_of_equal_messages(self, n_devices: int) -> None:
        """All start at 0 with latency L = 4. Device i emits message h (to i + h) at L + h m, so each receiver gets one
        message at every L + h m and serves it at once: it ends at L + (n - 1) m + m, one message after the sends."""
        size_s = 0.5 * (1 - np.eye(n_devices))
        sent, ended = one_exchange(messages(size_s, latency_s=4.0), "fifo", [0.0] * n_devices)
        assert sent == [4 + (n_devices - 1) * 0.5] * n_devices
        assert ended == [4 + n_devices * 0.5] * n_devices

    def test_messages_queue_in_order_of_arrival(self) -> None:
        """To device 2: from 0 (2 long) at 2, from 1 (3 long, begun at 0.5) at 3.5. Served 2 to 4 and 4 to 7."""
        size_s = [[0, 0, 2], [0, 0, 3], [0, 0, 0]]
        assert after_computing([0, 0.5, 0], messages(size_s), "fifo") == ([2, 3.5, 0], [2, 3.5, 7])

    def test_a_port_idles_between_late_messages(self) -> None:
        """From 0 (1 long) at 1, served until 2; from 1 (2 long, begun at 5) at 7, served until 9."""
        size_s = [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
        assert after_computing([0, 5, 0], messages(size_s), "fifo") == ([1, 7, 0], [1, 7, 9])

    def test_messages_wait_for_the_receive_lane(self) -> None:
        """Device 2's lanes are free from 10 on; what arrived at 2 and 3 is served until 10 + 5."""
        size_s = [[0, 0, 2], [0, 0, 3], [0, 0, 0]]
        assert one_exchange(messages(size_s), "fifo", [0, 0, 10])[1] == [2, 3, 15]

    def test_kinds_of_ports_work_side_by_side(self) -> None:
        """Device 0 sends 3 to device 1 by one kind of port and 1 by the other, both from 0: 3 + 3 is the later end."""
        assert one_exchange(messages([[0, 3], [0, 0]], [[0, 1], [0, 0]]), "fifo", [0, 0]) == ([3, 0], [3, 6])

    def test_the_next_device_is_served_first(self) -> None:
        """Device 1 sends 1 to device 2 (at 1) before 4 to device 0 (at 5), although 0 has the lower number."""
        assert one_exchange(messages([[0, 0, 0], [4, 0, 1], [0, 0, 0]]), "fifo", [0, 0, 0]) == ([0, 5, 0], [9, 5, 2])


class TestMaxmin:
    def test_two_flows_share_a_port_and_the_longer_one_then_has_it_alone(self) -> None:
        """Sizes 1 and 2 at 1/2 each: the first ends at 2, the second has 1 left and ends at 3."""
        size_s = [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
        assert one_exchange(messages(size_s), "maxmin", [0, 0, 0]) == ([2, 3, 0], [2, 3, 3])

    def test_a_flow_that_joins_halves_the_rate_of_the_other(self) -> None:
        """0 to 2 (3 long) has 2 left when 1 to 2 (1 long) joins at 1: this ends at 3, that with 1 left at 4."""
        size_s = [[0, 0, 3], [0, 0, 1], [0, 0, 0]]
        assert after_computing([0, 1, 0], messages(size_s), "maxmin") == ([4, 3, 0], [4, 3, 4])

    def test_the_tail_of_a_flow_is_not_lost(self) -> None:
        """The second message is longer by 2^-30 s, which it flows alone for after both have shared until 2."""
        tail_s = 2.0**-30
        size_s = [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0 + tail_s], [0.0, 0.0, 0.0]]
        assert one_exchange(messages(size_s), "maxmin", [0, 0, 0])[1] == [2, 2 + tail_s, 2 + tail_s]

    def test_flows_wait_for_the_receivers_lane(self) -> None:
        """0 to 1 can begin at 0.5 (latency), 0 to 2 at 4: the first flows alone until 2.5, the second until 6."""
        size_s = [[0, 2, 2], [0, 0, 0], [0, 0, 0]]
        assert one_exchange(messages(size_s, latency_s=0.5), "maxmin", [0, 0, 4]) == ([6, 0.5, 4.5], [6, 2.5, 6])

    def test_what_a_fuller_port_leaves_goes_to_the_others(self) -> None:
        """Device 0 sends to 1, 2 and 3 at 1/3 each, so 1 to 3 gets 2/3 of receive port 3."""
        flowing = np.zeros((4, 4), bool)
        flowing[0, 1:] = flowing[1, 3] = True
        rates = fair_rates(flowing)
        np.testing.assert_allclose(rates[0], [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-15)
        assert rates[1, 3] == pytest.approx(2 / 3, rel=1e-15)
        assert rates.sum() == pytest.approx(5 / 3)

    def test_rates_agree_with_filling_from_below(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(40):
            flowing = rng.random((int(rng.integers(1, 7)),) * 2) < rng.random()
            want = fair_shares([(int(i), int(j)) for i, j in np.argwhere(flowing)])
            got = fair_rates(flowing)
            assert {flow: pytest.approx(rate, rel=1e-9) for flow, rate in want.items()} == {f: got[f] for f in want}
            assert not got[~flowing].any()

    def test_nothing_flows_where_there_is_nothing_to_send(self) -> None:
        assert fluid_ends_s(np.zeros((2, 2)), np.zeros((2, 2))).tolist() == [[-np.inf] * 2] * 2
        assert one_exchange(messages(np.zeros((2, 2)), latency_s=1.0), "maxmin", [0, 3]) == ([1, 4], [1, 4])

    def test_a_later_rival_lets_the_other_flow_end_earlier(self) -> None:
        """Law maxmin is not monotone: computing longer on device 1 (0, then 5) lets device 0 end at 1, not at 2."""
        size_s = [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
        assert after_computing([0, 0, 0], messages(size_s), "maxmin") == ([2, 2, 0], [2, 2, 2])
        assert after_computing([0, 5, 0], messages(size_s), "maxmin") == ([1, 6, 0], [1, 6, 6])
