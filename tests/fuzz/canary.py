"""What shows that an input was executed: an object whose unpickling makes a folder, and an ear for what Python does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

NAME = "executed"
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree", "ctypes.dlopen",
}  # fmt: skip


class Canary:
    """Unpickled, it makes the folder `executed` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (NAME,)


class Ear:
    """Audit events of a kind that reading has no use for, heard while `listening`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.listening = False
        self.heard: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.listening:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (event in FORBIDDEN or writes) and not self._inside(arguments):
            self.heard.append(f"{event}{arguments!r}"[:200])

    def _inside(self, arguments: tuple[Any, ...]) -> bool:
        """Whether what is done is done to a file of the folder of this input, as exporters do."""
        return bool(arguments) and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(self.folder)
