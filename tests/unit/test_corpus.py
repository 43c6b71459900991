"""Texts and tokens for training: what readers keep, leave out and hold out."""

import gzip

import numpy as np
import pytest

from scenarios.errors import ScenarioError
from traces.capture import corpus
from traces.capture.corpus import parse_sources, read_domain, read_text
from traces.capture.tokens import BYTES, Vocabulary, joined_bytes, learn_vocabulary

WORDS = "The quick brown fox jumps over the lazy dog and reads about number"
MAN_PAGE = r""".\" a comment
.TH LS 1
.SH NAME
ls \- list files
.SH DESCRIPTION
.PP
The option \fB\-a\fP shows \(lqall\(rq of them.
.B ls
"""
HTML = (
    "<html><head><title>no</title></head><body><nav>no</nav><h1>Sort</h1><p>One &amp; two</p><script>no</script></body>"
)
METAMATH = "$( A comment. $)\n$d x y $.\nax $p |- ( a -> b ) $= ( c d ) ABC $.\n"


def paragraph(number):
    return f"{WORDS} {number}. " * 4


def write_files(folder, count=40):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(paragraph(number))
    return folder


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ls.1", MAN_PAGE, '\nNAME\nls - list files\n\nDESCRIPTION\n\nThe option -a shows "all" of them.\nls'),
        ("page.html", HTML, "\n\nSort\n\nOne & two"),
        ("set.mm", METAMATH, "$( A comment. $)\nax $p |- ( a -> b ) $.\n"),
        ("plain.txt", "as it\r\nis", "as it\nis"),
    ],
)
def test_text_of_each_kind_of_file_also_gzipped(name, text, expected, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    with gzip.open(tmp_path / f"{name}.gz", "wb") as stream:
        stream.write(text.encode())
    assert read_text(tmp_path / name) == expected
    assert read_text(tmp_path / f"{name}.gz") == expected


def test_repeats_and_licences_are_left_out(tmp_path):
    folder = write_files(tmp_path / "texts")
    (folder / "copy.txt").write_text(paragraph(3))
    (folder / "mixed.txt").write_text(
        f"{paragraph(3)}\n\n{paragraph('new')}\n\nCopyright (c) 2020 by somebody, licensed under the GNU GPL."
    )
    domain = read_domain("words", [folder])
    texts = [document.text for document in (*domain.train, *domain.test)]
    assert sum(paragraph(3).strip() in text for text in texts) == 1
    assert sum("number new" in text for text in texts) == 1
    assert not any("Copyright" in text for text in texts)


def test_the_test_part_is_fixed_by_names_alone(tmp_path):
    few = read_domain("few", [write_files(tmp_path / "few", 40)])
    many = read_domain("many", [write_files(tmp_path / "many", 80)])
    assert {d.name for d in few.test} <= {d.name for d in many.test}
    assert not {d.name for d in few.train} & {d.name for d in few.test}
    assert 1 <= len(few.test) <= 12


def test_long_files_are_cut_at_line_ends(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 10)
    assert list(corpus.pieces("abc\ndef\nghijk\n")) == ["abc\ndef\n", "ghijk\n"]
    assert list(corpus.pieces("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]


def test_reading_stops_at_the_wanted_length(tmp_path):
    folder = write_files(tmp_path / "texts", 80)
    domain = read_domain("some", [folder], most_characters=6000)
    length = sum(len(document.text) for document in (*domain.train, *domain.test))
    assert 6000 <= length < 6000 + len(paragraph(79))


def test_sources_are_refused_with_a_remedy(tmp_path):
    assert parse_sources(["a=x", "b=y", "a=z"])["a"][1].name == "z"
    with pytest.raises(ScenarioError, match="DOMAIN=FILE_OR_FOLDER"):
        parse_sources(["only-a-path"])
    with pytest.raises(ScenarioError, match="neither a file nor a folder"):
        read_domain("x", [tmp_path / "missing"])
    with pytest.raises(ScenarioError, match="no texts in"):
        read_domain("x", [tmp_path])
    (tmp_path / "one.txt").write_text(paragraph(1))
    with pytest.raises(ScenarioError, match="give it more files"):
        read_domain("x", [tmp_path / "one.txt"])


def test_merges_by_hand():
    # Pairs of "abababcab": ab 4, ba 2, then with X = ab: XX 2, XC 1, CX 1.
    vocabulary = learn_vocabulary(["abababcab"], BYTES + 2)
    assert vocabulary.merges.tolist() == [[97, 98], [256, 256]]
    assert vocabulary.encode(["abababcab"]).tolist() == [257, 256, 99, 256, 0]


def slow_merge(tokens, left, right, new):
    result, at = [], 0
    while at < len(tokens):
        hit = tokens[at : at + 2] == [left, right]
        result.append(new if hit else tokens[at])
        at += 2 if hit else 1
    return result


def test_encoding_equals_merging_pair_by_pair():
    texts = ["aaaa aaa banana bandana aaaaa", "Ähre äh 数学 数数数数 数学"]
    vocabulary = learn_vocabulary(texts, BYTES + 20)
    expected = joined_bytes(texts).tolist()
    for number, (left, right) in enumerate(vocabulary.merges.tolist()):
        expected = slow_merge(expected, left, right, BYTES + number)
    found = vocabulary.encode(texts)
    assert found.tolist() == expected
    assert len(found) < len(joined_bytes(texts))
    assert vocabulary.decode(found.tolist()) == "\0".join([*texts, ""])


def test_a_vocabulary_that_contradicts_itself_is_refused():
    with pytest.raises(ScenarioError, match="comes after it"):
        Vocabulary(merges=np.array([[97, 256]]))
    with pytest.raises(ScenarioError, match="must be"):
        Vocabulary(merges=np.zeros((2, 3), np.int64))
