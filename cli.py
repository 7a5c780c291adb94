"""Launcher for a checkout: `python cli.py build specs/flamingo.yaml`."""

from vlmc.commands import app

if __name__ == "__main__":
    app()
