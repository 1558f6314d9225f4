"""The command line."""

from lazytiles.cli.commands import main as main

__all__ = ["main"]
