"""Prompts of a file: texts, chats or token ids, each with a label where the file gives one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.errors import TraceError

TEXT_KEYS = ("prompt", "text", "messages", "ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, as exactly one of text, messages of a chat, or token ids; `where` is its file and line."""

    where: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    ids: tuple[int, ...] | None = None
    label: str | None = None


def read_prompts(path: Path, label_field: str = "label") -> tuple[Prompt, ...]:
    """Prompts of a `.jsonl` or text file, in its order.

    .jsonl      a line: {"prompt" or "text": TEXT} or {"messages": [...]} or {"ids": [...]}, beside it the label.
    other text  prompts end at blank lines where the file has any between texts, and at line ends where it has none.

    Raises TraceError, with file and line, where the file is unreadable, empty, or labels some prompts only.
    """
    lines = _text(path).splitlines()
    prompts = _records(path, lines, label_field) if path.suffix.lower() == ".jsonl" else _texts(path, lines)
    if not prompts:
        raise TraceError(f"{path}: holds no prompts; write one a line, or JSON lines in a file that ends in .jsonl")
    unlabelled = [prompt.where for prompt in prompts if prompt.label is None]
    if 0 < len(unlabelled) < len(prompts):
        raise TraceError(f"{unlabelled[0]}: has no '{label_field}', which other lines have; label all prompts or none")
    return tuple(prompts)


def encode(prompts: Sequence[Prompt], tokenizer: Any, max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of every prompt [request][token], cut to the first `max_tokens`.

    `tokenizer` is one of transformers, or None where the model comes without; then all prompts must be ids.
    Raises TraceError, with file and line, where a prompt cannot be encoded or has no tokens.
    """
    encoded = [_encode(prompt, tokenizer)[:max_tokens] for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise TraceError(f"{prompt.where}: the prompt has no tokens; leave it out")
    return encoded


def _encode(prompt: Prompt, tokenizer: Any) -> list[int]:
    if prompt.ids is not None:
        return list(prompt.ids)
    if tokenizer is None:
        raise TraceError(
            f"{prompt.where}: the model comes without a tokenizer, so give token ids instead of text: JSON lines "
            '{"ids": [...]}'
        )
    if prompt.messages is None:
        return list(tokenizer(prompt.text)["input_ids"])
    if not tokenizer.chat_template:
        raise TraceError(f"{prompt.where}: the tokenizer has no chat template; give 'prompt' instead of 'messages'")
    try:
        text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs of the model's authors and raise what they like
        raise TraceError(f"{prompt.where}: the model's chat template refuses the messages ({error})") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise TraceError(f"{path}: cannot be read ({reason}); give a file of prompts") from None


def _texts(path: Path, lines: Sequence[str]) -> list[Prompt]:
    """Prompts of a text file: blocks between blank lines, or lines."""
    text = "\n".join(lines).strip()
    blocks = re.split(r"\n(?:[ \t]*\n)+", text) if text else []
    parts = blocks if len(blocks) > 1 else text.splitlines()
    unit = "prompt" if len(blocks) > 1 else "line"
    return [
        Prompt(where=f"{path}, {unit} {number}", text=part)
        for number, part in enumerate(parts, start=1)
        if part.strip()
    ]


def _records(path: Path, lines: Sequence[str], label_field: str) -> list[Prompt]:
    return [
        _record(f"{path}:{number}", line, label_field) for number, line in enumerate(lines, start=1) if line.strip()
    ]


def _record(where: str, line: str, label_field: str) -> Prompt:
    """The prompt of one line of JSON."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON ({error}); each line of a .jsonl file is one object") from None
    keys = [key for key in TEXT_KEYS if key in record] if isinstance(record, dict) else []
    if len(keys) != 1:
        raise TraceError(
            f"{where}: must be an object with exactly one of {', '.join(TEXT_KEYS)}; it has {keys or 'none'}"
        )
    value, label = record[keys[0]], record.get(label_field)
    if not isinstance(label, str | int | None):
        raise TraceError(f"{where}: '{label_field}' must be a word or a whole number")
    name = None if label is None else str(label)
    if keys[0] == "messages":
        return Prompt(where=where, label=name, messages=_messages(where, value))
    if keys[0] == "ids":
        return Prompt(where=where, label=name, ids=_ids(where, value))
    if not isinstance(value, str) or not value.strip():
        raise TraceError(f"{where}: '{keys[0]}' must be a text that is not empty")
    return Prompt(where=where, label=name, text=value)


def _messages(where: str, value: Any) -> tuple[dict[str, Any], ...]:
    sound = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    if not sound:
        raise TraceError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    return tuple(value)


def _ids(where: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value)
    if not whole:
        raise TraceError(f"{where}: 'ids' must be a list of token ids, whole numbers from 0")
    return tuple(value)
