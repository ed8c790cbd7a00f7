"""python -m paramcli"""

from .cli.app import main

if __name__ == "__main__":
    main()
