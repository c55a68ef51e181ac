"""Entry point of `ppl-risk estimate | compare | check | list | show`.

Exit codes: 0 a number to believe, 2 none, 3 a user's mistake, 130 and 143 stopped by SIGINT and SIGTERM. This file imports nothing
heavy, so that a signal finds its handler early and a typo its answer; the commands are in `app.commands`.
"""

from __future__ import annotations

import sys
from typing import Any

from ppl_risk.app import BELIEVE as BELIEVE
from ppl_risk.app import MISTAKE as MISTAKE
from ppl_risk.app import WEAK as WEAK
from ppl_risk.app import stopping


def __getattr__(name: str) -> Any:
    if name == "app":
        from ppl_risk.app.commands import app

        return app
    raise AttributeError(f"module 'ppl_risk.cli' has no attribute {name!r}")


def main() -> None:
    """Entry point of `ppl-risk`."""
    stopping.listen()
    try:
        code = _run()
    except BaseException as error:
        # A library may turn the interrupt into an error of its own while it is being imported.
        if not (stopping.stopped() or isinstance(error, KeyboardInterrupt)):
            raise
        code = stopping.say_goodbye()
    sys.exit(code)


def _run() -> int:
    from cyclopts import CycloptsError

    from ppl_risk.app.commands import app
    from ppl_risk.errors import RiskError

    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, RiskError) as error:
        message = str(error)
        if isinstance(error.__cause__, OSError) and (command := stopping.resuming()):
            message += f" Go on with: {command}"
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror or error}"
    except MemoryError:
        message = "Out of memory. Make the model smaller, or close what else is running."
    else:
        return code if isinstance(code, int) else BELIEVE
    if stopping.stopped():
        raise stopping.Stopped
    print(f"ppl-risk: {message}", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    main()
