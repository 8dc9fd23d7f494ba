"""The command line: `bayesmerge demo` and `bayesmerge preview`."""

from bayesmerge.cli.commands import app

__all__ = ["app"]
