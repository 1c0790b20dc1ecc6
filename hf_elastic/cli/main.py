"""Running a command, and what is said when it fails; `hf_elastic_cli` has come before."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

from hf_elastic_cli import COMMANDS, fail, main, module_of

from ..core.errors import UserError


def run(command: str, arguments: list[str], *, debug: bool = False) -> int:
    """Run a command.

    What a user can change (bad input, a disk, permissions, the network, a training that diverges) is one line; anything else is
    a bug and keeps its traceback.

    Args:
        command: its name.
        arguments: what follows the name.
        debug: show the traceback in any case.

    Returns:
        Exit status: 0 for success, 2 for what is said in one line, 130 after Ctrl-C.
    """
    try:
        return import_module(f".{module_of(command)}", __package__).main(arguments) or 0
    except (UserError, OSError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
        return fail(str(error))
    except KeyboardInterrupt:
        print(f"\nhf-elastic: interrupted; nothing half-written is left. {COMMANDS[command].resume}".rstrip(), file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
