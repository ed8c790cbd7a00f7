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

from .cli.app import main

if __name__ == "__main__":
    main()
