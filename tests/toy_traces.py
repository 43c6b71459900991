"""Traces written out token by token, for tests of locality and caches."""

import numpy as np

from traces.routing import Provenance, RoutingTrace


def trace_of(tokens, n_experts, lengths=None, padding=False):
    """Trace of tokens[token][layer] = expert ids, all of equal number unless padded with 255."""
    ids = np.array(tokens, np.uint8).transpose(1, 2, 0)
    return RoutingTrace(
        ids=np.ascontiguousarray(ids),
        n_experts=n_experts,
        offsets=np.concatenate([[0], np.cumsum(lengths or [len(tokens)])]),
        positions=np.arange(len(tokens), dtype=np.int32),
        moe_layers=tuple(range(ids.shape[0])),
        phase="decode",
        provenance=Provenance(model="made up", source="test", kind="synthetic"),
        variable_k=padding,
    )
