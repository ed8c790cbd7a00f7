"""python -m paramcli"""

import os
import sys

# `-m` puts the working folder in front of the import path; what lies beside a checkpoint is not to be imported.
try:
    here = os.getcwd()
except OSError:
    here = ""  # it was removed, and nothing lies in it
if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", here):
    del sys.path[0]


def main() -> None:
    """The command; a Ctrl-C while it is imported ends it as one later does."""
    try:
        from .cli.app import main as run
    except BaseException as error:
        # Python 3.11 wraps what is raised while a class is being made in a RuntimeError.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print("error: interrupted; nothing was left half written", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
