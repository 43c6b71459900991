"""Hugging Face models and tokenizers that lie on this machine; nothing is fetched from a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scenarios.errors import MoesimError, TraceError
from traces.capture.readings import check_architecture

# transformers makes an empty tokenizer, without complaint, where a model has none of these.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model on its device, its tokenizer or None, its config.json, and its name without folders."""

    name: str
    model: Any
    tokenizer: Any
    config_path: Path


def load_model(name_or_path: str, device: str, dtype: str = "auto") -> LocalModel:
    """The causal language model in a folder, or of this name in the Hugging Face cache, on `device` in `dtype`.

    Raises MoesimError where it is not on this machine, is no MoE model that capture reads, does not fit, or where
    torch sees no such device.
    """
    transformers = _transformers()
    target = _device(device)
    config_path = _config_path(transformers, name_or_path)
    name = _name(name_or_path)
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, local_files_only=True)
        check_architecture(config.get_text_config().model_type)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name_or_path, config=config, dtype=dtype, local_files_only=True
        )
        model = model.to(target).eval()
    except torch.OutOfMemoryError:
        raise MoesimError(f"{name_or_path}: does not fit on {device}; try --dtype bfloat16 or --device cpu") from None
    except (OSError, ValueError, ImportError, RuntimeError) as error:  # what transformers raises for unusable files
        raise MoesimError(f"{name_or_path}: cannot be loaded ({_first_line(error)})") from None
    tokenizer = _tokenizer(transformers, name_or_path, config_path.parent)
    return LocalModel(name=name, model=model, tokenizer=tokenizer, config_path=config_path)


def _transformers() -> Any:
    """The library, told to stay off the network and to keep its progress bars and advice to itself."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # beside local_files_only: some side requests heed the variable alone
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise MoesimError("torch sees no CUDA device; take --device cpu, or a build of torch with CUDA")
    return torch.device(name)


def _config_path(transformers: Any, name_or_path: str) -> Path:
    """Path of the model's config.json. Raises TraceError where the model is not on this machine."""
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TraceError(f"{name_or_path}: holds no config.json; give the folder of a Hugging Face model")
        return folder / "config.json"
    try:
        return Path(transformers.utils.cached_file(name_or_path, "config.json", local_files_only=True))
    except (OSError, ValueError):
        raise TraceError(
            f"{name_or_path}: is no folder, and not in the Hugging Face cache of this machine; capture fetches "
            f"nothing: give the model's folder, or run `hf download {name_or_path}` first"
        ) from None


def _name(name_or_path: str) -> str:
    folder = Path(name_or_path)
    return folder.resolve().name if folder.is_dir() else name_or_path.split("/")[-1]


def _tokenizer(transformers: Any, name_or_path: str, folder: Path) -> Any:
    """The model's tokenizer, or None where it comes without (which matters only to prompts that are texts)."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(name_or_path, local_files_only=True)
    except Exception as error:  # tokenizers raise what they like for files that they cannot read
        raise MoesimError(f"{name_or_path}: its tokenizer cannot be loaded ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
