"""Shipped traces: they load, fit their cards, say where they come from, and a specialised router made them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scenarios.catalog import find_model, list_traces
from scenarios.errors import TraceError
from scenarios.workload_specs import WorkloadSpec
from sim.routing_plots import routing_figure, write_routing_figure
from sim.setting import check_trace, open_trace
from tests import toy_traces as toys
from traces.profile import profile, with_shuffled_labels
from traces.split import select_sequences
from traces.stats import domain_information_bits, expert_loads
from traces.storage import load_trace

NAMES = ["moesim-20m-decode", "moesim-20m-prefill"]
CARDS = ["moesim-20m", "moesim-20m-v2-lite-widths"]
DOMAINS = ("chinese", "code", "english", "german", "mathematics")
MOST_BYTES = 3 << 20


def shipped(name):
    return load_trace(dict(list_traces())[name])


def test_these_traces_are_shipped_and_small():
    assert [name for name, _ in list_traces()] == NAMES
    assert max(path.stat().st_size for _, path in list_traces()) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("card", CARDS)
def test_traces_fit_both_cards_and_open_by_name(name, card):
    model = find_model(card, Path())
    trace = open_trace(WorkloadSpec(trace=name), model, Path("/nowhere"))
    check_trace(trace, model)
    assert trace.phase == name.rpartition("-")[2]


@pytest.mark.parametrize("name", NAMES)
def test_traces_say_what_they_are(name):
    trace = shipped(name)
    assert trace.provenance.kind == "captured"
    assert trace.provenance.licence == "Apache-2.0"
    assert "moesim" in trace.provenance.model and "capture train" in trace.provenance.source
    assert tuple(sorted(set(trace.labels))) == DOMAINS
    assert np.bincount(np.unique(trace.labels, return_inverse=True)[1]).tolist() == [80] * 5
    assert np.unique(np.diff(trace.offsets)).tolist() == [128]
    assert int(trace.positions.min()) == (0 if trace.phase == "prefill" else 128)
    ordered = np.sort(trace.ids, axis=1)
    assert (np.diff(ordered.astype(np.int64), axis=1) > 0).all(), "a token selects an expert twice"


@pytest.mark.parametrize("name", NAMES)
def test_experts_know_the_domain(name):
    trace = shipped(name)
    known = domain_information_bits(trace)
    shuffled = domain_information_bits(with_shuffled_labels(trace, np.random.default_rng(0)))
    assert (known > 5 * shuffled).all()
    assert known.mean() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_specialisation_holds_on_requests_that_it_was_not_seen_in(name):
    """Domains of half of the requests, guessed from expert loads of the other half: chance is one in five."""
    trace = shipped(name)
    shares = np.stack([expert_loads(select_sequences(trace, np.array([s]))) for s in range(trace.n_sequences)])
    shares = shares.reshape(trace.n_sequences, -1) / shares[0].sum()
    labels = np.array(trace.labels)
    seen = np.arange(trace.n_sequences) % 2 == 0
    centres = np.stack([shares[seen & (labels == domain)].mean(axis=0) for domain in DOMAINS])
    nearest = ((shares[~seen][:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
    assert (np.array(DOMAINS)[nearest] == labels[~seen]).mean() > 0.6


def labelled(labels):
    """Two sequences of two tokens. Layer 0 splits them by sequence, layer 1 not at all."""
    tokens = [[[0], [0]], [[0], [1]], [[1], [0]], [[1], [1]]]
    return replace(toys.trace_of(tokens, 2, lengths=[2, 2]), labels=labels)


def test_information_about_domains_by_hand():
    assert domain_information_bits(labelled(("a", "b"))).tolist() == [1.0, 0.0]
    assert domain_information_bits(labelled(("a", "a"))).tolist() == [0.0, 0.0]
    with pytest.raises(TraceError, match="has no labels"):
        domain_information_bits(labelled(()))


def test_a_profile_of_a_trace_by_hand():
    found = profile("toy", labelled(("a", "b")), np.random.default_rng(0))
    assert found.imbalance.tolist() == [1.0, 1.0]
    assert found.reuse.tolist() == [1.0, 0.0]
    assert found.uniform_reuse == 0.5
    assert found.affinity_bits.tolist() == [0.0]
    assert found.domain_bits is not None and found.domain_bits.tolist() == [1.0, 0.0]
    # Per layer, one place: layer 0 hits each second token, layer 1 never; two places: the same, all first touches.
    assert found.lru_hit_frac.tolist() == [0.25, 0.25]
    assert found.row()["domain_bits"] == 0.5


@pytest.mark.slow
def test_the_figure_of_profiles_is_a_picture(tmp_path):
    one = profile("toy", labelled(("a", "b")), np.random.default_rng(0))
    write_routing_figure([one, replace(one, name="other", domain_bits=None, shuffled_bits=None)], tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    figure = routing_figure([one])
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 1, 2, 1, 1]
