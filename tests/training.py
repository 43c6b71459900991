"""Settings that train, small enough to follow by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from placement.plan import Placement
from scenarios.training_specs import TrainingSpec
from sim.setting import Setting
from tests.small import even_placement, random_trace, tiny_cluster, tiny_model, tiny_setting


def setting_of(spec: TrainingSpec | None = None, **fields: Any) -> Setting:
    """A tiny model on four devices of one node, 32 tokens each; `fields` as of `tiny_setting`."""
    model = fields.pop("model", None) or tiny_model()
    cluster = fields.pop("cluster", None) or tiny_cluster()
    load = {"phase": "train", "tokens_per_device": 32} | fields
    return replace(tiny_setting(model, cluster, random_trace(model), **load), training=spec or TrainingSpec())


def even(setting: Setting) -> Placement:
    """Experts in order, one copy of each."""
    return even_placement(setting.model, setting.layout.n_ranks)
