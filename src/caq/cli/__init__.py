"""The command line: every command imports what it needs when it runs."""

from caq.cli.app import main

__all__ = ["main"]
