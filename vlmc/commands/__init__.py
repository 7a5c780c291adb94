"""The command line: thin over the library. Exit codes: 0 done, 1 the design is wrong, 2 the command
is wrong, 3 this machine cannot do it."""

from __future__ import annotations

import gc
import os

# A command starts from nothing each time. Importing makes many objects and hardly any garbage, so
# collecting rarely saves a tenth of the time of `vlmc validate`; and looking for plugins of
# pydantic, which vlmc has none of, would read the metadata of every installed package.
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from vlmc.commands.bench import bench
from vlmc.commands.build import build
from vlmc.commands.cache import cache
from vlmc.commands.diff import diff
from vlmc.commands.explain import explain
from vlmc.commands.plan import plan
from vlmc.commands.run import run
from vlmc.commands.schema import schema
from vlmc.commands.train import train
from vlmc.commands.validate import validate
from vlmc.commands.verify import verify
from vlmc.commands.version import version

app = typer.Typer(
    name="vlmc",
    help="Compiles a YAML description of a vision-language model into a runnable model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (validate, build, run, verify, plan, diff, bench, cache, explain, schema):
    app.command()(command)
# What follows the plan goes to train.py, which knows its own options.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.callback()(version)

__all__ = ["app"]
