"""The command line."""

from lazytiles.cli.commands import main
