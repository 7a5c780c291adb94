"""`vlmc cache`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Json
from vlmc.diagnostics.amount import volume


def cache(
    action: Annotated[
        Literal["show", "clear"], typer.Argument(help="clear removes all that vlmc put there.")
    ] = "show",
    as_json: Json = False,
) -> None:
    """Where finished graphs of earlier builds, costs for plans and what torch's compiler made are
    kept, and how much that is. `clear` removes them; they are made again when they are wanted."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        from vlmc.emit.store import store

        found = store()
        if action == "clear":
            count, size = found.clear()
            if as_json:
                typer.echo(json.dumps({"version": 1, "cleared": count, "bytes": size}))
            else:
                typer.echo(f"{found.root}: {count} artifacts removed, {volume(size)}")
            return
        entries, notes = found.entries(), found.notes()
        size = sum(entry.size for entry in (*entries, *notes))
        if as_json:
            rows = [{"about": e.about, "bytes": e.size, "key": e.folder.name} for e in entries]
            document = {
                "version": 1,
                "folder": str(found.root),
                "bytes": size,
                "limit": found.limit,
                "entries": rows,
                "notes": len(notes),
            }
            typer.echo(json.dumps(document))
            return
        typer.echo(
            f"{found.root}: {len(entries)} artifacts and notes on {len(notes)} builds, "
            f"{volume(size)} of at most {volume(found.limit)}"
        )
        for entry in reversed(entries):
            typer.echo(f"  {entry.about}, {volume(entry.size)}")
