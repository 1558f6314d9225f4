"""``python -m lazytiles``: the command line."""

from lazytiles.cli import main

if __name__ == "__main__":
    main()
