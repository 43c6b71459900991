"""The passes of offline generation: which tokens each holds, and in which contexts they attend."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.reduction import Reduction
from scenarios.workload_specs import GenerateSpec
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Tokens of one kind of pass.

    setting    its tokens; of decode as many steps as passes are simulated, of others one.
    decoding   bool[token]: a request that advances by one token; others belong to prompts that come whole.
    prompts    int[token]: 1 at the last token of a prompt, else 0.
    reduction  tokens of every expert.
    """

    setting: Setting
    decoding: NDArray[np.bool_]
    prompts: NDArray[np.int64]
    reduction: Reduction


def sampled_passes(generate: GenerateSpec, n_samples: int) -> NDArray[np.int64]:
    """Decode passes that are simulated, int64[sample]: of 1 to new_tokens - 1, evenly spread, ends included."""
    last = generate.new_tokens - 1
    return np.unique(np.linspace(1, last, min(n_samples, last)).round().astype(np.int64))


def decode_passes(setting: Setting, reduction: Reduction, generate: GenerateSpec) -> Pass:
    """The sampled decode passes: in pass i every request attends to its prompt and i tokens of its answer."""
    passes = sampled_passes(generate, setting.batches.n_steps)
    batches = setting.batches.at(np.arange(len(passes)))
    contexts = np.broadcast_to(generate.prompt_tokens + passes[:, None, None], batches.contexts.shape)
    n_tokens = batches.tokens.shape[-1]
    return Pass(
        setting=replace(setting, batches=replace(batches, contexts=contexts)),
        decoding=np.ones(n_tokens, bool),
        prompts=np.zeros(n_tokens, np.int64),
        reduction=_steps_of(reduction, len(passes)),
    )


def prompt_pass(setting: Setting, reduction: Reduction, generate: GenerateSpec) -> Pass:
    """All prompts, whole, in one pass."""
    requests = setting.workload.tokens_per_device
    ages = np.zeros(requests, np.int64)
    return _pass_of_ages(setting, reduction, generate, ages)


def mixed_pass(setting: Setting, reduction: Reduction, generate: GenerateSpec) -> Pass:
    """A pass of many in a row: requests of all ages, those of age 0 with their whole prompt (MoE-Lens)."""
    return _pass_of_ages(
        setting, reduction, generate, np.arange(setting.workload.tokens_per_device) % generate.new_tokens
    )


def _pass_of_ages(setting: Setting, reduction: Reduction, generate: GenerateSpec, ages: NDArray[np.int64]) -> Pass:
    """One pass of requests that have had so many tokens of their answer, int64[request].

    Their tokens are routed as the request's token of the workload's first step is.
    """
    prompt, is_new = generate.prompt_tokens, ages == 0
    counts = np.where(is_new, prompt, 1)
    ends = np.cumsum(counts)
    place = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    new = np.repeat(is_new, counts)
    contexts = np.where(new, place + 1, prompt + np.repeat(ages, counts))
    tokens = np.repeat(setting.batches.tokens[:1], counts, axis=-1)
    phase = "prefill" if is_new.all() else "decode"
    workload = setting.workload.model_copy(update={"tokens_per_device": len(place), "phase": phase})
    batches = replace(setting.batches, tokens=tokens, contexts=contexts[None, None, :])
    return Pass(
        setting=replace(setting, batches=batches, workload=workload),
        decoding=~new,
        prompts=(new & (place == prompt - 1)).astype(np.int64),
        reduction=_scaled(_steps_of(reduction, 1), len(place) / len(ages)),
    )


def _steps_of(reduction: Reduction, n_steps: int) -> Reduction:
    parts = n_steps * reduction.n_chunks
    return replace(
        reduction, slot_tokens=reduction.slot_tokens[:, :parts], summed_tokens=reduction.summed_tokens[:, :parts]
    )


def _scaled(reduction: Reduction, factor: float) -> Reduction:
    """So many times the tokens of every expert, rounded."""

    def scaled(counts: NDArray[np.int32]) -> NDArray[np.int32]:
        rounded: NDArray[np.int32] = np.rint(counts * factor).astype(np.int32)
        return rounded

    return replace(reduction, slot_tokens=scaled(reduction.slot_tokens), summed_tokens=scaled(reduction.summed_tokens))
