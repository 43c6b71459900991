"""`python -m traces.capture COMMAND`: `moesim capture` where nothing but torch and numpy is installed."""

from __future__ import annotations

import sys
import traceback

from scenarios.errors import MoesimError
from traces.capture.commands import main

PROGRAM = "python -m traces.capture"

if __name__ == "__main__":
    try:
        main(sys.argv[1:], PROGRAM)
    except MoesimError as error:
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        print(f"capture: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
