"""`vlmc run`."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import MAX_SEED, Checkpoint, Json, Mini, Overrides
from vlmc.commands.progress import shown


def run(
    spec: Annotated[
        Path, typer.Argument(help="A spec file (YAML) or a build folder.", show_default=False)
    ],
    *,
    prompt: Annotated[
        str,
        typer.Option(
            help="The question. Write <image> where an image belongs; without it, images come "
            "first."
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image file; where the design takes video, an animated file or a folder of "
            "frames too. Repeat it for several."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    mini: Mini = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="tokenizer.json or the folder that holds it (default: the checkpoint's; bytes "
            "for a twin)."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Region features in place of an image: a safetensors file with `features` "
            "[regions, width] and, where the design takes them, `boxes`."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the answer, at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token. More: drawn, the more freely.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens that together reach this probability."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from this many of the likeliest tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0, max=MAX_SEED)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="Number format (default: fp32 on the CPU, bf16 elsewhere)."),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Answer about images: with published weights (--checkpoint), or at once as the laptop-size
    twin (--mini), whose seeded weights have learnt nothing."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        from vlmc.pipeline import load_spec

        design = load_spec(spec, overrides or ())
        with shown(str(spec), quiet=as_json) as report:
            report("loading torch")
            from vlmc.runtime.answer import ask
            from vlmc.runtime.generate import Sampling
            from vlmc.runtime.session import start

            sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
            session = start(
                design,
                mini=mini,
                checkpoint=checkpoint,
                build=spec if spec.is_dir() else None,
                tokenizer=tokenizer,
                device=device,
                dtype=dtype,
                report=report,
            )
        answer = ask(
            session,
            prompt,
            image or (),
            features=features,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            on_note=lambda note: None if as_json else typer.echo(f"note: {note}", err=True),
            on_text=lambda text: None if as_json else _write(text),
        )
        if as_json:
            typer.echo(json.dumps(answer.to_json(session)))
            return
        typer.echo()
        for choice in answer.choices:
            _write(f"{choice}\n")
        typer.echo(answer.summary(), err=True)


def _write(text: str) -> None:
    """A piece of the answer. A model may say anything, so nothing that steers a terminal passes."""
    kept = "".join(
        c
        if c in "\n\t" or not unicodedata.category(c).startswith("C")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(kept.encode(encoding, "replace").decode(encoding), nl=False)
