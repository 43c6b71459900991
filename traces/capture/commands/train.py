"""`capture train`: a real router, trained; its routing by domain."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from scenarios.errors import MoesimError
from scenarios.files import check_folder
from traces.capture.corpus import parse_sources, read_domain
from traces.capture.recipe import RECIPES, Plan, Recipe

HELP = "Train a small MoE model and record its routing by domain."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--corpus",
        action="append",
        required=True,
        metavar="DOMAIN=PATH",
        help="file or folder of texts (plain, man pages, HTML; also .gz); again for each domain and further sources",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; holds checkpoints too")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cpu-small", help="[cpu-small]")
    parser.add_argument("--steps", type=int, metavar="N", help="steps instead of the recipe's")
    parser.add_argument("--seed", type=int, help="[0]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on a CPU [torch's own choice]")
    parser.add_argument("--requests", type=int, default=80, metavar="N", help="prompts recorded of each domain [80]")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="tokens of a prompt [128]")
    parser.add_argument(
        "--new-tokens", type=int, default=128, metavar="N", help="greedy tokens after each prompt [128]"
    )


def run(options: argparse.Namespace) -> None:
    """Train, or go on from a checkpoint in the folder; record and write. Raises MoesimError."""
    recipe, plan = _recipe(options), _plan(options)
    sources = parse_sources(options.corpus)
    check_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    import torch

    from traces.capture.training_run import train_and_record

    if options.device == "cuda" and not torch.cuda.is_available():
        raise MoesimError("--device cuda: torch sees no CUDA device; take --device cpu")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    domains = [read_domain(name, paths, recipe.domain_characters) for name, paths in sources.items()]
    for domain in domains:
        characters = sum(len(document.text) for document in domain.train)
        print(f"{domain.name}: {len(domain.train)} documents, {characters:,} characters; {len(domain.test)} held out")
    train_and_record(domains, recipe, plan, options.out, torch.device(options.device))


def _recipe(options: argparse.Namespace) -> Recipe:
    recipe = RECIPES[options.recipe]
    if options.seed is not None:
        recipe = replace(recipe, seed=options.seed)
    return recipe if options.steps is None else replace(recipe, steps=options.steps)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(requests=options.requests, prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens)
