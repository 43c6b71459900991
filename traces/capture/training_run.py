"""A training run in a folder: resumed where it stopped; losses and balance as CSV, routing as traces."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from scenarios.files import write_text
from traces.capture.corpus import Domain
from traces.capture.decoder import Decoder
from traces.capture.experts import loop
from traces.capture.recipe import Plan, Recipe
from traces.capture.record import prompts_of, record, trace_of
from traces.capture.train import (
    LOG_COLUMNS,
    Material,
    Training,
    advance,
    held_out_losses,
    resume,
    save_checkpoint,
    start,
    tokenise,
    unigram_entropies,
)
from traces.routing import Phase, Provenance, RoutingTrace
from traces.storage import save_trace

CHECKPOINT_STEPS = 50
TELL_STEPS = 10


def train_and_record(domains: Sequence[Domain], recipe: Recipe, plan: Plan, folder: Path, device: torch.device) -> None:
    """Train, or go on from the folder's checkpoint; write log.csv, losses.csv, recipe.json, prefill.npz, decode.npz."""
    material = tokenise(domains, recipe)
    for name, tokens in material.train.items():
        print(f"{name}: {len(tokens):,} tokens, {len(material.test[name]):,} held out", flush=True)
    prompts = {name: prompts_of(tokens, plan) for name, tokens in sorted(material.test.items())}
    untrained = held_out_losses(start(recipe, device).model, material, recipe)
    run = train(recipe, material, folder / "checkpoint.pt", device)
    write_text(json.dumps(asdict(recipe), indent=2) + "\n", folder / "recipe.json")
    write_text(table_text(LOG_COLUMNS, run.log), folder / "log.csv")
    trained = held_out_losses(run.model, material, recipe)
    entropies = unigram_entropies(material)
    rows = [(name, untrained[name], entropies[name], trained[name]) for name in material.test]
    write_text(table_text(LOSS_COLUMNS, rows), folder / "losses.csv")
    for row in rows:
        print(f"{row[0]}: loss {row[1]:.3f} before, {row[3]:.3f} after; unigram entropy {row[2]:.3f} nats per token")
    for phase, trace in traces_of(run.model, recipe, prompts, plan).items():
        save_trace(trace, folder / f"{phase}.npz")
        print(f"{folder / f'{phase}.npz'}: {trace.n_tokens:,} tokens of {trace.n_sequences} requests", flush=True)


LOSS_COLUMNS = ("domain", "untrained_nats", "unigram_nats", "trained_nats")


def train(recipe: Recipe, material: Material, checkpoint: Path, device: torch.device) -> Training:
    """The finished run; a checkpoint is written every CHECKPOINT_STEPS steps, and taken up where there is one.

    Raises ScenarioError where the checkpoint belongs to another recipe or vocabulary.
    """
    run = resume(recipe, material, checkpoint, device) if checkpoint.exists() else start(recipe, device)
    begun_s, first = time.perf_counter(), len(run.log)
    while len(run.log) < recipe.steps:
        advance(run, material, min(len(run.log) + TELL_STEPS, recipe.steps))
        step, _, loss, _, imbalance, _ = run.log[-1]
        tokens = (len(run.log) - first) * recipe.batch * recipe.context_tokens
        rate = tokens / (time.perf_counter() - begun_s)
        print(f"step {step + 1:.0f}: loss {loss:.3f}, imbalance {imbalance:.2f}, {rate:,.0f} tokens/s", flush=True)
        if len(run.log) % CHECKPOINT_STEPS == 0 or len(run.log) == recipe.steps:
            save_checkpoint(run, material, checkpoint)
    return run


def traces_of(
    model: Decoder, recipe: Recipe, prompts: Mapping[str, np.ndarray], plan: Plan
) -> dict[Phase, RoutingTrace]:
    """Traces of prompts and of greedy continuations, all domains together."""
    found = {name: record(model, tokens, plan.new_tokens, loop) for name, tokens in prompts.items()}
    config = recipe.config
    shape = f"{config.n_layers} layers, {config.n_experts} experts, top {config.top_k}, hidden {config.hidden_size}"
    origin = Provenance(
        model=f"small MoE language model of moesim ({shape})",
        source=f"moesim capture train: torch {torch.__version__}, seed {recipe.seed}, {recipe.n_tokens:,} tokens",
        kind="captured",
        licence="Apache-2.0",
        notes=(
            f"held-out prompts of {plan.prompt_tokens} tokens, {plan.requests} of each domain: {', '.join(prompts)}",
            f"continued greedily by {plan.new_tokens} tokens",
        ),
    )
    n_experts = config.n_experts
    return {
        "prefill": trace_of({name: part[0] for name, part in found.items()}, 0, "prefill", origin, n_experts),
        "decode": trace_of(
            {name: part[1] for name, part in found.items()}, plan.prompt_tokens, "decode", origin, n_experts
        ),
    }


def table_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV of the rows, numbers to six digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    return stream.getvalue()
