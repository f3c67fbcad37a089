"""Where the installed commands start.

Decided here and only here: that an interrupt while the program is still being loaded ends it without a traceback.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the installed commands."""
    try:
        from casstore_cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(3)  # the exit code of every interrupt: see casstore.errors
    run()
