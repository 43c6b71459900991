"""What a batch former could do at best: a bound on the experts that its steps keep busy."""

from __future__ import annotations

import numpy as np

from placement.plan import Placement
from sim.setting import Setting
from traces.formers import least_distinct


def former_metrics(setting: Setting, placement: Placement) -> dict[str, float]:
    """The least `active_experts_per_device` of the same tokens in whatever batches; none where a former has no choice.

    Tokens are divided anew among the steps that the former divides them among.
    """
    batches = setting.batches
    if setting.workload.batches.pool == 1:
        return {}
    trace, n_steps = batches.trace, batches.n_steps
    step_tokens = batches.tokens[0].size
    pairs = 0
    for begin in range(0, n_steps, batches.exchanged):
        tokens = batches.tokens[begin : begin + batches.exchanged].ravel()
        known = np.minimum(trace.ids[:, :, tokens].astype(np.int64), trace.n_experts)
        uses = [np.bincount(layer.ravel(), minlength=trace.n_experts + 1)[:-1] for layer in known]
        pairs += least_distinct(np.array(uses), step_tokens)
    return {"active_experts_per_device.least": pairs / (n_steps * trace.n_layers * placement.n_ranks)}
