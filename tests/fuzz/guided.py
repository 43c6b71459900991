"""`python -m tests.fuzz.guided ENTRY SEED [OPTION...]`: bytes that Atheris steers by the branches they reach.

SEED counts the entry's valid inputs from 0; its first file is the one that changes. Options are libFuzzer's, such as
`-max_total_time=60`. Needs `pip install atheris`. Ends at the first input that is neither read nor refused, which
libFuzzer keeps beside it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from scenarios.errors import MoesimError
from tests.fuzz.mutate import files_of


def main() -> None:
    """Read what Atheris makes of a valid input until an option of libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["scenarios", "traces", "hwmodels", "placement", "sim", "moesim"]):
        entry = import_module("tests.fuzz.entries").ENTRIES[sys.argv[1]]
        names_input = import_module("tests.fuzz.campaign").names_input
    work = Path(tempfile.mkdtemp(prefix="guided"))
    os.chdir(work)
    (work / "input").mkdir()
    (work / "corpus").mkdir()
    read = entry.seeds[int(sys.argv[2])](work / "input")
    changed = files_of(work / "input")[0]
    (work / "corpus" / "valid").write_bytes(changed.read_bytes())

    def one_input(data: bytes) -> None:
        changed.write_bytes(data)
        try:
            read()
        except MoesimError as error:
            if entry.named and not names_input(str(error), work / "input"):
                raise AssertionError(f"refused without the file's name: {error}") from error

    atheris.Setup([sys.argv[0], "-print_final_stats=1", *sys.argv[3:], str(work / "corpus")], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
