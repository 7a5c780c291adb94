"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Specs = Annotated[list[Path], typer.Argument(help="Spec files (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override one value, such as adapter.queries=32."
    ),
]
MAX_SEED = 2**63 - 1
"""What torch's generators take."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Mini = Annotated[bool, typer.Option("--mini", help="Use the laptop-size twin of the design.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="A Hugging Face checkpoint folder (config.json + safetensors)."),
]
