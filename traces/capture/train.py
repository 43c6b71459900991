"""Training of a decoder whose router is real: language modelling over several domains with balanced experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scenarios.errors import ScenarioError
from scenarios.files import whole_file
from traces.capture.corpus import Domain
from traces.capture.decoder import Decoder
from traces.capture.experts import BACKENDS, Backend, ExpertWeights, Routing
from traces.capture.recipe import Recipe
from traces.capture.tokens import Tokens, Vocabulary, learn_vocabulary

DECAY_SHARE = 0.2
SAMPLE_CHARACTERS = 400_000  # of each domain, from which the vocabulary is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Tokens of every domain, uint16 [token], to train on and held out, and the held-out documents themselves."""

    vocabulary: Vocabulary
    train: Mapping[str, Tokens]
    test: Mapping[str, Tokens]


@dataclass(slots=True, kw_only=True)
class Training:
    """A run in progress: what a checkpoint holds. `log` has one row a step, see LOG_COLUMNS."""

    recipe: Recipe
    model: Decoder
    optimiser: torch.optim.AdamW
    log: list[tuple[float, ...]] = field(default_factory=list)


LOG_COLUMNS = ("step", "tokens", "loss_nats", "balance_loss", "load_imbalance", "learning_rate")


def tokenise(domains: Sequence[Domain], recipe: Recipe) -> Material:
    """The domains as tokens of a vocabulary learnt on an equal share of each domain's training part."""
    samples = [_text_of(domain, SAMPLE_CHARACTERS) for domain in domains]
    vocabulary = learn_vocabulary(samples, recipe.config.vocab_size)
    return Material(
        vocabulary=vocabulary,
        train={domain.name: vocabulary.encode([part.text for part in domain.train]) for domain in domains},
        test={domain.name: vocabulary.encode([part.text for part in domain.test]) for domain in domains},
    )


def _text_of(domain: Domain, characters: int) -> str:
    return "\n\n".join(document.text for document in domain.train)[:characters]


def start(recipe: Recipe, device: torch.device) -> Training:
    """A run before its first step, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    model = Decoder(recipe.config).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    scales = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    return Training(recipe=recipe, model=model, optimiser=optimiser)


def advance(run: Training, material: Material, until: int) -> None:
    """Train on to step `until`; every batch depends on seed and step alone, so that a resumed run is the same run."""
    names = sorted(material.train)
    device = next(run.model.parameters()).device
    for step in range(len(run.log), until):
        rng = np.random.default_rng([run.recipe.seed, step])
        batch = draw([material.train[name] for name in names], run.recipe, rng)
        run.log.append(_step(run, step, torch.from_numpy(batch).to(device)))


def draw(domains: Sequence[Tokens], recipe: Recipe, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sequences of context + 1 tokens from random places, the domains in turn: int64 [batch, token]."""
    length = recipe.context_tokens + 1
    first = int(rng.integers(len(domains)))
    rows = []
    for number in range(recipe.batch):
        tokens = domains[(first + number) % len(domains)]
        place = int(rng.integers(len(tokens) - length + 1))
        rows.append(tokens[place : place + length])
    return np.stack(rows).astype(np.int64)


def _step(run: Training, step: int, batch: Tensor) -> tuple[float, ...]:
    recipe, model = run.recipe, run.model
    rate = learning_rate(recipe, step)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=recipe.half):
        hidden, choices = forward_with_scores(model, batch[:, :-1], backend_of(recipe, batch.device))
        logits = model.logits(hidden)
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    uneven = torch.stack([balance_loss(scores, counts) for scores, counts in choices])
    total = loss + recipe.balance * uneven.sum() if recipe.config.gating == "softmax" else loss
    run.optimiser.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    run.optimiser.step()
    if recipe.config.gating == "sigmoid":
        for block, (_, counts) in zip(model.layers, choices, strict=True):
            block.router.bias += bias_step(counts, recipe.balance)
    imbalance = torch.stack([counts.max() / counts.float().mean() for _, counts in choices]).mean()
    tokens = (step + 1) * recipe.batch * recipe.context_tokens
    return (step, tokens, loss.item(), uneven.mean().item(), imbalance.item(), rate)


def forward_with_scores(model: Decoder, tokens: Tensor, backend: Backend) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Hidden states [request, token, hidden] and, per layer, all scores [token, expert] and tokens per expert."""
    turns = model.turns_of(tokens, None)
    x = model.embedding(tokens)
    choices = []
    for block in model.layers:
        x = block.attend(x, turns, None, None)
        normed, routing, scores = block.route(x)
        choices.append((scores, torch.bincount(routing.ids.flatten(), minlength=model.config.n_experts)))
        x = block.mix(x, normed, routing, backend)
    return model.norm(x), choices


def balance_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """Experts x sum over experts of (share of routed tokens x mean score): 1 when even (arXiv 2101.03961, eq. 4).

    Over the whole batch, all domains together: experts may specialise as long as all are used.
    """
    share = counts / counts.sum()
    mean_score = scores.mean(dim=0) / scores.mean(dim=0).sum()
    return len(counts) * (share * mean_score).sum()


def bias_step(counts: Tensor, step: float) -> Tensor:
    """Change of the biases: up by `step` for experts below the mean load, down for those above (arXiv 2412.19437)."""
    load = counts.float()
    return step * torch.sign(load.mean() - load)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Rate of a step: linear warm-up, flat, and over the last fifth of the steps linearly down to a tenth.

    The first four fifths do not depend on the number of steps: a longer run begins as a shorter one (arXiv 2404.06395).
    """
    rise = (step + 1) / recipe.warmup if step < recipe.warmup else 1.0
    left = (recipe.steps - step) / max(DECAY_SHARE * recipe.steps, 1.0)
    return recipe.learning_rate * min(rise, 0.1 + 0.9 * min(left, 1.0))


def backend_of(recipe: Recipe, device: torch.device) -> Backend:
    """The recipe's back end; its inputs are made bfloat16 on a GPU where the recipe is `half`.

    On a CPU float32 experts are faster: the conversions of all weights cost more than the smaller products save.
    """
    backend = BACKENDS[recipe.backend]
    if not recipe.half or device.type == "cpu":
        return backend

    def in_half(tokens: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        small = Routing(routing.ids, routing.weights.bfloat16())
        return backend(tokens.bfloat16(), small, ExpertWeights(weights.up.bfloat16(), weights.down.bfloat16()))

    return in_half


def held_out_losses(model: Decoder, material: Material, recipe: Recipe, sequences: int = 32) -> dict[str, float]:
    """Mean loss [nats per token] of each domain over its first `sequences` held-out stretches of context."""
    length = recipe.context_tokens + 1
    device = next(model.parameters()).device
    losses = {}
    for name, tokens in material.test.items():
        count = min(sequences, len(tokens) // length)
        batch = torch.from_numpy(tokens[: count * length].astype(np.int64).reshape(count, length)).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.half):
            logits = model.logits(model(batch[:, :-1], backend=backend_of(recipe, device)))
        losses[name] = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten()).item()
    return losses


def save_checkpoint(run: Training, material: Material, path: Path) -> None:
    """Write model, optimiser, log and vocabulary; the file appears whole or not at all."""
    state = {
        "recipe": repr(run.recipe),
        "model": run.model.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "log": run.log,
        "merges": torch.from_numpy(material.vocabulary.merges.copy()),
    }
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def resume(recipe: Recipe, material: Material, path: Path, device: torch.device) -> Training:
    """The run that `save_checkpoint` wrote.

    Raises ScenarioError where it belongs to another recipe or vocabulary.
    """
    run = start(recipe, device)
    state = torch.load(path, map_location=device, weights_only=True)
    same_text = torch.equal(state["merges"].cpu(), torch.from_numpy(material.vocabulary.merges.copy()))
    if state["recipe"] != repr(recipe) or not same_text:
        raise ScenarioError(f"{path}: holds a run of another recipe or corpus; delete it, or choose another folder")
    run.model.load_state_dict(state["model"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.log = [tuple(row) for row in state["log"]]
    return run


def unigram_entropies(material: Material) -> dict[str, float]:
    """Loss [nats per token] of a model that knows only how frequent each token is, all domains together, by domain."""
    joined = np.concatenate(list(material.train.values()))
    counts = np.bincount(joined, minlength=material.vocabulary.size) + 1.0  # one more, so that none is impossible
    surprise = -np.log(counts / counts.sum())
    return {name: float(surprise[tokens].mean()) for name, tokens in material.test.items()}
