"""Runs what the pages of docs/tutorial and docs/guides show, in order, each page in an empty folder of its own.

`python -m docs.executed [PAGE...]`, or `make output`, writes the output that commands print now into the pages, and
their figures to docs/images; tests/docs/test_pages.py compares. A fence says what becomes of its block:

yaml, python  a file, named by the first line: `# mine.yaml`.
sh            commands that must succeed; what they print is not shown.
console       commands after `$ `, and under each what it prints, errors included.
diff          a patch of files in the folder.
text          nothing; it is only shown.

`<!-- figure: out/plots/x.png y.png -->`: the page shows this file of its folder as docs/images/y.png.
A page that begins with `<!-- in a checkout -->` has a copy of the program in its folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = sorted(page for folder in ("tutorial", "guides") for page in (HERE / folder).glob("*.md"))
BLOCK = re.compile(r"^```(yaml|python|sh|console|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"^<!-- figure: (\S+) (\S+) -->$", re.MULTILINE)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)
NAME = re.compile(r"# ([\w./-]+)\n")
CHECKOUT = "<!-- in a checkout -->\n"
COPIED = ("moesim", "scenarios", "traces", "hwmodels", "placement", "sim", "tests", "pyproject.toml")
COLUMNS = "88"  # what a column of text is wide in the built pages
MACHINE_TIMES = re.compile(r"(?<= in )[\d.]+s\b")
"""Times of test runs, which differ from one run to the next."""


class PageError(Exception):
    """A block of a page that does not do what the page says."""


def renewed(page: Path, folder: Path) -> str:
    """The text of a page with the output that its commands print now; its files are made in `folder`.

    Raises PageError where a command fails, or a block has no file name.
    """
    text = page.read_text()
    if text.startswith(CHECKOUT):
        _copy_program(folder)
    with tempfile.TemporaryDirectory() as commands:
        environment = _environment(Path(commands), folder)
        return BLOCK.sub(lambda block: _done(block, folder, environment), text)


def comparable(text: str) -> str:
    """A page without what differs from one run to the next."""
    return MACHINE_TIMES.sub("TIME", text)


def figures(text: str) -> list[tuple[str, Path]]:
    """Files in the folder of a page, and the pictures that they are shown as."""
    return [(made, HERE / "images" / shown) for made, shown in FIGURE.findall(text)]


def _done(block: re.Match[str], folder: Path, environment: dict[str, str]) -> str:
    """A block as it is after its commands have run."""
    language, text = block[1], block[2]

    def run(command: str) -> str:
        return _printed(command, folder, environment)

    if language == "console":
        return f"```console\n{_with_output(text, run)}```"
    if language == "sh":
        run(f"set -e\n{text}")
    elif language == "diff":
        (folder / "page.diff").write_text(text)
        run("git apply page.diff")
    else:
        name = NAME.match(text)
        if name is None:
            raise PageError(f"a block of {language} begins with the name of its file, such as '# mine.{language}'")
        (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
        (folder / name[1]).write_text(text)
    return block[0]


def _with_output(text: str, run: Callable[[str], str]) -> str:
    """The commands of a console block, each followed by what it prints."""
    commands = [command[1] for command in COMMAND.finditer(text)]
    if not text.startswith("$ "):
        raise PageError(f"a console block begins with '$ ': {text[:40]}")
    return "".join(f"$ {command}\n{run(command)}" for command in commands)


def _printed(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command prints, without spaces at the ends of lines. Raises PageError where it fails."""
    shell = ["bash", "-c", command]
    done = subprocess.run(
        shell, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise PageError(f"{command}\nended with exit code {done.returncode}:\n{done.stdout}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def _environment(commands: Path, folder: Path) -> dict[str, str]:
    """Environment in which `moesim` and `python` are those of this checkout, or of the copy in the folder."""
    python = commands / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    moesim = commands / "moesim"
    moesim.write_text(f'#!/bin/sh\nexec {sys.executable} -m moesim "$@"\n')
    for script in (python, moesim):
        script.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    return kept | {
        "PATH": f"{commands}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]),
        "COLUMNS": COLUMNS,
        "NO_COLOR": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }


def _copy_program(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "measured")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def main(names: Sequence[str]) -> None:
    """Renew the pages of these names, or all."""
    for page in PAGES:
        if names and page.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = renewed(page, Path(folder))
            page.write_text(text)
            for made, shown in figures(text):
                shutil.copy(Path(folder) / made, shown)
        print(page.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
