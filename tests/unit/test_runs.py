"""Runs of a tiny model: what they compute equals the plain forward pass, and what they record can be predicted."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scenarios.errors import ScenarioError  # noqa: E402
from sim.recorded_runs import read_kind  # noqa: E402
from sim.run_prediction import uses_of  # noqa: E402
from sim.run_validation import check_cache  # noqa: E402
from traces.caches import events_from_sets, replay_cache  # noqa: E402
from traces.capture.config import MoeConfig  # noqa: E402
from traces.capture.decoder import KvCache  # noqa: E402
from traces.capture.experts import BACKENDS  # noqa: E402
from traces.capture.runs.bench import Bench  # noqa: E402
from traces.capture.runs.kinds import Passes, contexts_of, microbatches, offloaded  # noqa: E402
from traces.capture.runs.models import replayed_ids  # noqa: E402
from traces.capture.runs.offloaded import NEVER, OffloadedExperts, OffloadPolicy  # noqa: E402
from traces.capture.runs.overlap import StreamedLayers  # noqa: E402
from traces.capture.runs.parts import Attended, Profile  # noqa: E402
from traces.capture.runs.passes import Inputs, run_pass, whole_layers  # noqa: E402
from traces.capture.runs.record import write_kind  # noqa: E402
from traces.capture.runs.serving import Load, Server, routing_by_request  # noqa: E402
from traces.capture.streams import open_lanes  # noqa: E402

TINY = MoeConfig(
    vocab_size=64,
    n_layers=3,
    hidden_size=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    n_experts=8,
    top_k=2,
    expert_intermediate_size=16,
    shared_intermediate_size=16,
    max_tokens=128,
)
POLICIES = {
    "copy": OffloadPolicy(n_slots=6),
    "prefetch": OffloadPolicy(n_slots=6, prefetch=True),
    "host": OffloadPolicy(n_slots=2, copy_from_tokens=NEVER),
    "mix": OffloadPolicy(n_slots=7, copy_from_tokens=2),
}


@pytest.fixture
def bench():
    with open_lanes("cpu") as lanes, torch.inference_mode():
        yield Bench(lanes=lanes, repeats=2, shapes={"tiny": TINY})


def outputs(bench, mix, before=lambda: None, n_passes=4):
    """Hidden states of the last layer of every pass, by a mix that notes them."""
    model = bench.model("tiny", "skewed")
    passes, seen = Passes(bench, model, [20, 20, 20], 1, n_passes), []

    def noting(number, x, normed, routing, log):
        mixed = mix(number, x, normed, routing, log)
        if number == TINY.n_layers - 1:
            seen.append(mixed)
        return mixed

    return passes.play(noting, before), seen


@pytest.mark.parametrize("policy", POLICIES)
def test_offloaded_experts_give_what_resident_ones_do(bench, policy):
    model = bench.model("tiny", "skewed")
    plain, want = outputs(bench, whole_layers(model, "loop"))
    experts = OffloadedExperts(model, POLICIES[policy], bench.lanes)
    experts.reset()
    logs, found = outputs(bench, experts.mix)
    torch.testing.assert_close(torch.stack(found), torch.stack(want))
    assert sum(len(missed) for log in logs for missed in log.misses) > 0, "nothing was ever missed"
    for log, other in zip(logs, plain, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(log.ids, other.ids, strict=True))


@pytest.mark.parametrize("overlapped", [False, True])
def test_streamed_layers_give_what_resident_ones_do(bench, overlapped):
    model = bench.model("tiny", "skewed")
    _, want = outputs(bench, whole_layers(model, "loop"))
    streamed = StreamedLayers(model, BACKENDS["loop"], bench.lanes, overlapped=overlapped)
    _, found = outputs(bench, streamed.mix, streamed.begin)
    torch.testing.assert_close(torch.stack(found), torch.stack(want))


def test_a_pass_is_the_decoders_forward(bench):
    model = bench.model("tiny", "own")
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    caches = [KvCache.empty(TINY, 2, model.embedding.weight) for _ in range(2)]
    best, log = run_pass(model, caches[0], Inputs(tokens=tokens), whole_layers(model, "loop"), bench.lanes)
    assert torch.equal(best, model.logits(model(tokens, caches[1])[:, -1]).argmax(-1))
    assert len(log.marks) == 3 + 3 * TINY.n_layers
    assert caches[0].lengths.tolist() == [9, 9]


def test_microbatches_are_routed_alike_on_two_streams_and_on_one(bench):
    one, two = (microbatches(bench, "tiny", overlapped, 2, 1) for overlapped in (False, True))
    np.testing.assert_array_equal(one.seen["ids"], two.seen["ids"])
    assert one.seen["ids"].shape == (3, 2, 2 * 2 * 4)


def write(bench, kind, cases, folder):
    write_kind(kind, cases, bench.shapes, {"device": "a CPU", "dtype": "fp32", "command": "test"}, folder)


@pytest.mark.parametrize("policy", POLICIES)
def test_recorded_hits_are_the_simulated_and_the_textbooks(bench, policy, tmp_path):
    case = offloaded(bench, "tiny", "skewed", 3, POLICIES[policy])
    write(bench, "offload", [case], tmp_path)
    (run,) = read_kind(tmp_path, "offload").runs
    check_cache(run)
    if policy == "copy":  # the textbook knows neither prefetch nor hosts
        begin = [set(range(6))] * TINY.n_layers
        sets = [[set(np.flatnonzero(layer)) for layer in one] for one in run.seen.counts]
        replay = replay_cache(events_from_sets([begin, *sets], TINY.n_experts), 6)
        np.testing.assert_array_equal(run.measured["misses"], replay.event_misses[1:])
    assert len(uses_of(run.seen)) == 24


def test_records_of_other_models_stay(bench, tmp_path):
    case = offloaded(bench, "tiny", "own", 1, POLICIES["copy"])
    write(bench, "offload", [case], tmp_path)
    entry = json.loads((tmp_path / "runs-offload.json").read_text())
    entry["cases"][0]["settings"]["model"] = "another"
    entry["models"]["another"] = entry["models"]["tiny"]
    (tmp_path / "runs-offload.json").write_text(json.dumps(entry))
    renamed = offloaded(bench, "tiny", "own", 2, POLICIES["copy"])
    write(bench, "offload", [renamed], tmp_path)
    names = [one["name"] for one in json.loads((tmp_path / "runs-offload.json").read_text())["cases"]]
    assert names == [case.name, renamed.name]
    with np.load(tmp_path / "runs-offload.npz") as arrays:
        assert {name.partition("/")[0] for name in arrays.files} == {case.name, renamed.name}


def test_a_server_writes_every_token_once(bench):
    model = bench.model("tiny", "own")
    load = Load(
        arrival_s=np.array([0.0, 0.0, 0.001]), prompt_tokens=np.array([5, 9, 4]), answer_tokens=np.array([3, 2, 4])
    )
    log = Server(model, whole_layers(model, "loop"), bench.lanes, 2).serve(load)
    ids, offsets = routing_by_request(log, 3)
    assert np.diff(offsets).tolist() == [5 + 2, 9 + 1, 4 + 3]  # the last token is written, not read
    assert ids.shape == (3, 2, offsets[-1])
    assert (log.first_token_s < log.done_s).all()
    assert max(len(requests) for requests, _ in log.passes) == 2


def test_a_step_that_wants_more_experts_than_slots_is_refused(bench):
    with pytest.raises(ScenarioError, match="the device has 1 slots"):
        offloaded(bench, "tiny", "own", 3, OffloadPolicy(n_slots=1))


def test_replayed_routing_reuses_experts_and_never_repeats_one_in_a_token():
    ids = replayed_ids(TINY, 4, 40, seed=1).numpy()
    assert ids.shape == (3, 4, 40, 2)
    assert (np.diff(np.sort(ids, axis=-1)) > 0).all()
    again = (ids[:, :, 1:, :, None] == ids[:, :, :-1, None, :]).any(-1).mean()
    drawn = np.random.default_rng(0).permutation(40)
    shuffled = ids[:, :, drawn]
    by_chance = (shuffled[:, :, 1:, :, None] == shuffled[:, :, :-1, None, :]).any(-1).mean()
    assert again > by_chance + 0.1


def test_a_profile_times_each_part_of_each_layer(bench):
    profile = Profile(bench, bench.model("tiny", "own"))
    profile.watch(Attended(variant="gathered", requests=3, tokens=1, longest=20), rounds=2)
    rows = {(part.part, part.requests, part.tokens): len(part.samples_s) for part in profile.parts("tiny")}
    assert rows["gathered", 3, 1] == rows["gate", 0, 3] == rows["sort", 0, 3] == rows["shared", 0, 3] == 2 * 3
    assert rows["head", 3, 0] == rows["embed", 0, 3] == 2
    assert sum(n * tokens for (part, _, tokens), n in rows.items() if part == "expert") == 2 * 3 * 3 * 2


def test_contexts_of_a_batch_are_equal_or_spread_around_their_mean():
    assert contexts_of(3, 48) == [48] * 3
    assert contexts_of(5, 300) == [150, 225, 300, 375, 450]
    assert Attended(variant="ragged", requests=3, tokens=1, longest=31).contexts == [30, 20, 10]
