"""Texts by domain for training a router: read from files and folders, cleaned, without repeats, a test part apart."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from scenarios.errors import ScenarioError

PIECE_CHARACTERS = 1 << 16  # longer files become several documents, cut at line ends
SHORTEST_CHARACTERS = 200
TEST_SHARE = 10  # one document of so many is held out
REPEAT_CHARACTERS = 60  # shorter paragraphs (headings, table cells) may occur again
LARGEST_BYTES = 1 << 28
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".c", ".h", ".rs", ".go", ".java", ".mm", ".v", ".lean"})
MAN_SUFFIX = re.compile(r"\.[1-9][a-z]*$")
LICENCE = re.compile(
    r"copyright (\(c\)|©|\d{4})|all rights reserved|GNU (general|lesser|free)|general public licen|"
    r"permission is (hereby )?granted|redistribution and use|apache license|mozilla public|licen[cs]ed under|"
    r"WITHOUT WARRANTY|AS IS\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A cleaned text and the name of the file, below its source, that it comes from."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the test part: decided by its name alone, so that more files move none."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") % TEST_SHARE == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Texts of one kind, `train` and held-out `test`.

    Raises ScenarioError where either part is empty.
    """

    name: str
    train: tuple[Document, ...]
    test: tuple[Document, ...]

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            raise ScenarioError(
                f"domain {self.name}: {len(self.train)} documents to train on and {len(self.test)} held out; "
                f"give it more files (about one in {TEST_SHARE} is held out, by name)"
            )


def read_domain(name: str, sources: Sequence[Path], most_characters: int | None = None) -> Domain:
    """The domain of the texts in `sources` (files or folders), in an order by hash, up to about `most_characters`.

    Texts that occur twice, paragraphs that occur twice and paragraphs about licences are left out.
    Raises ScenarioError where a source is missing or nothing readable is in it.
    """
    seen: set[bytes] = set()
    documents: list[Document] = []
    room = math.inf if most_characters is None else most_characters
    for path, label in sorted(_files(sources), key=lambda pair: digest(pair[1])):
        if room <= 0:
            break
        for number, piece in enumerate(pieces(read_text(path))):
            text = cleaned(piece, seen) if room > 0 else ""
            if len(text) >= SHORTEST_CHARACTERS:
                documents.append(Document(name=f"{label}#{number}", text=text))
                room -= len(text)
    return Domain(
        name=name,
        train=tuple(document for document in documents if not document.held_out),
        test=tuple(document for document in documents if document.held_out),
    )


def parse_sources(pairs: Sequence[str]) -> dict[str, list[Path]]:
    """Sources by domain of `domain=FILE_OR_FOLDER` words; a domain may be named more than once."""
    sources: dict[str, list[Path]] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ScenarioError(f"corpus {pair!r}: expected DOMAIN=FILE_OR_FOLDER, for instance code=/usr/lib/python3")
        sources.setdefault(name, []).append(Path(path))
    return sources


def read_text(path: Path) -> str:
    """Text of a file by its suffix: man pages, HTML, plain text, also gzipped; what is not UTF-8 falls out."""
    raw = path.read_bytes()
    name = path.name
    if name.endswith(".gz"):
        with gzip.open(path) as stream:
            raw, name = stream.read(LARGEST_BYTES), name.removesuffix(".gz")
    text = raw.decode("utf-8", errors="ignore").replace("\r\n", "\n")
    if MAN_SUFFIX.search(name):
        return man_text(text)
    if name.endswith((".html", ".htm")):
        return html_text(text)
    if name.endswith(".mm"):
        return metamath_text(text)
    return text


def man_text(source: str) -> str:
    """Text of a man page in roff: requests and font changes taken out, one paragraph per block."""
    lines = []
    for line in source.splitlines():
        if line.startswith((".SH", ".SS")):
            lines += ["", re.sub(r"^\.S[HS]\s*", "", line).strip('"')]
        elif line.startswith((".PP", ".P", ".LP", ".TP", ".IP", ".HP", ".sp")) and len(line) < 5:
            lines.append("")
        elif line.startswith((".B", ".I", ".RB", ".RI", ".SM")):
            lines.append(re.sub(r"^\.[A-Z]+\s*", "", line).replace('"', ""))
        elif not line.startswith((".", "'")):
            lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"\\f(\[[A-Z]*\]|\([A-Z]{2}|.)|\\[&|,/^:%]", "", text)
    text = re.sub(r"\\\((.q|lq|rq)", '"', text)
    text = text.replace("\\-", "-").replace("\\e", "\\").replace("\\ ", " ").replace("\\(aq", "'")
    return re.sub(r"\\\(..|\\\[[^]]*\]|\\s[-+]?\d", "", text)


def metamath_text(source: str) -> str:
    """Comments and statements of a Metamath file, without proofs (packed beyond reading) and declarations."""
    without_proofs = re.sub(r"\$=.*?\$\.", "$.", source, flags=re.DOTALL)
    return re.sub(r"\$[df]\s[^$]*\$\.\s?", "", without_proofs)


class _HtmlText(HTMLParser):
    SKIPPED = frozenset({"script", "style", "header", "nav", "aside", "footer", "title", "head"})
    BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "li", "tr", "pre", "div", "br", "dt", "dd"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n\n" if tag in {"p", "h1", "h2", "h3", "pre"} else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in self.SKIPPED and self.skipping > 0

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data)


def html_text(source: str) -> str:
    """Text of an HTML page: navigation, scripts and tags taken out."""
    parser = _HtmlText()
    parser.feed(source)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(parser.parts).splitlines())
    return "\n".join(lines)


def pieces(text: str) -> Iterator[str]:
    """The text in parts of at most PIECE_CHARACTERS, cut at line ends where lines allow."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if end < len(text):
            end = max(text.rfind("\n", start, end) + 1, 0) or end
            end = end if end > start else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end


def cleaned(text: str, seen: set[bytes]) -> str:
    """The text's paragraphs without licences and without those whose hash is in `seen`, which grows by the new ones."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        body = paragraph.strip("\n").rstrip()
        if not body or LICENCE.search(body):
            continue
        if len(body) >= REPEAT_CHARACTERS:
            mark = digest(" ".join(body.split()))
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(body)
    return "\n\n".join(kept)


def digest(text: str) -> bytes:
    """A hash of the text, by which orders and repeats are decided."""
    return hashlib.sha256(text.encode()).digest()[:16]


def _files(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for source in sources:
        if source.is_file():
            yield source, source.name
            continue
        if not source.is_dir():
            raise ScenarioError(f"corpus: {source} is neither a file nor a folder")
        found = [path for path in sorted(source.rglob("*")) if path.is_file() and _readable(path)]
        if not found:
            raise ScenarioError(
                f"corpus: no texts in {source}; known are man pages, HTML and {', '.join(sorted(TEXT_SUFFIXES))}"
            )
        yield from ((path, path.relative_to(source).as_posix()) for path in found)


def _readable(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return bool(MAN_SUFFIX.search(name)) or Path(name).suffix in TEXT_SUFFIXES | {".html", ".htm"}
