"""The command line: parse, call one function, print. Everything heavy is loaded inside the commands."""

from fedloom.cli.app import main

__all__ = ["main"]
