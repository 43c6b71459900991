"""Files of prompts: what they may hold, and what is said about what they may not."""

import json
from types import SimpleNamespace

import pytest

from scenarios.errors import TraceError
from traces.capture.prompts import Prompt, encode, read_prompts


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class Letters:
    """A tokenizer whose tokens are character codes; its template is the messages' contents, joined."""

    chat_template = "template"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return "|".join(message["content"] for message in messages)


def test_lines_are_prompts_where_no_line_is_blank(tmp_path):
    prompts = read_prompts(written(tmp_path, "p.txt", "one\ntwo words\n\n"))
    assert [prompt.text for prompt in prompts] == ["one", "two words"]
    assert [prompt.label for prompt in prompts] == [None, None]


def test_blocks_are_prompts_where_blank_lines_part_them(tmp_path):
    prompts = read_prompts(written(tmp_path, "p.txt", "\none\nmore\n\n \ntwo\n"))
    assert [prompt.text for prompt in prompts] == ["one\nmore", "two"]
    assert prompts[1].where.endswith("p.txt, prompt 2")


def test_json_lines_give_texts_chats_ids_and_labels(tmp_path):
    records = [
        {"prompt": "a", "label": "code"},
        {"text": "b", "label": 3},
        {"messages": [{"role": "user", "content": "c"}], "label": "chat"},
        {"ids": [4, 5], "label": "ids"},
    ]
    path = written(tmp_path, "p.jsonl", "\n\n".join(map(json.dumps, records)))
    prompts = read_prompts(path)
    assert [prompt.label for prompt in prompts] == ["code", "3", "chat", "ids"]
    assert prompts[3] == Prompt(where=f"{path}:7", ids=(4, 5), label="ids")
    assert encode(prompts, Letters()) == [[1, 97], [1, 98], [99], [4, 5]]


def test_another_field_may_hold_the_label(tmp_path):
    path = written(tmp_path, "p.jsonl", '{"prompt": "a", "domain": "law", "label": 7}')
    assert read_prompts(path, "domain")[0].label == "law"


def test_prompts_are_cut_to_their_first_tokens():
    prompts = [Prompt(where="here", ids=(7, 8, 9)), Prompt(where="there", ids=(5,))]
    assert encode(prompts, None, max_tokens=2) == [[7, 8], [5]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", " \n\n", "holds no prompts"),
        ("p.jsonl", "", "holds no prompts"),
        ("p.jsonl", '{"ids": [1]}\n{"prompt": "a"', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", "[1]", r"p\.jsonl:1: must be an object with exactly one of prompt.*it has none"),
        ("p.jsonl", '{"prompt": "a", "text": "b"}', r"it has \['prompt', 'text'\]"),
        ("p.jsonl", '{"prompt": " "}', "'prompt' must be a text that is not empty"),
        ("p.jsonl", '{"text": 3}', "'text' must be a text"),
        ("p.jsonl", '{"messages": ["a"]}', "must be a list of objects with 'role'"),
        ("p.jsonl", '{"ids": []}', "'ids' must be a list of token ids"),
        ("p.jsonl", '{"ids": [true]}', "'ids' must be a list of token ids"),
        ("p.jsonl", '{"ids": [-1]}', "'ids' must be a list of token ids"),
        ("p.jsonl", '{"ids": [1], "label": [2]}', "'label' must be a word"),
        ("p.jsonl", '{"ids": [1], "label": "a"}\n{"ids": [1]}', r"p\.jsonl:2: has no 'label'"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, name, text, message):
    with pytest.raises(TraceError, match=message):
        read_prompts(written(tmp_path, name, text))


def test_absent_and_binary_files(tmp_path):
    with pytest.raises(TraceError, match=r"gone\.txt: cannot be read \(No such file"):
        read_prompts(tmp_path / "gone.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not text in UTF-8"):
        read_prompts(tmp_path / "binary.txt")


def refusing(*_, **__):
    raise ValueError("roles must alternate")


@pytest.mark.parametrize(
    ("prompt", "tokenizer", "message"),
    [
        ({"text": "a"}, None, r'here: the model comes without a tokenizer.*\{"ids": \[\.\.\.\]\}'),
        ({"messages": ()}, SimpleNamespace(chat_template=None), "no chat template; give 'prompt'"),
        (
            {"messages": ()},
            SimpleNamespace(chat_template="t", apply_chat_template=refusing),
            "refuses the messages .roles must alternate",
        ),
        ({"text": "a"}, lambda _: {"input_ids": []}, "here: the prompt has no tokens"),
    ],
)
def test_prompts_that_cannot_be_encoded(prompt, tokenizer, message):
    with pytest.raises(TraceError, match=message):
        encode([Prompt(where="here", **prompt)], tokenizer)
