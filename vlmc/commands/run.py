"""`vlmc run`."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import MAX_SEED, Checkpoint, Json, Mini, Overrides
from vlmc.commands.progress import shown
from vlmc.runtime.engines.names import EngineName


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
        list[str] | None,
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
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends the answer and is no part of it. Repeat it for more."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Put the prompt into the chat template of the weights."),
    ] = False,
    engine: Annotated[
        EngineName,
        typer.Option(help="What runs it: the model itself, or the graphs of a build folder."),
    ] = "eager",
    threads: Annotated[
        int | None, typer.Option(help="Threads to compute in (default: the engine's own choice).")
    ] = None,
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
    with guarded(style), _compiling(engine):
        from vlmc.runtime.command import printable
        from vlmc.sessions import load

        with shown(str(spec), quiet=as_json) as report:
            session = load(
                spec,
                engine,
                mini=mini,
                checkpoint=checkpoint,
                tokenizer=tokenizer,
                overrides=overrides or (),
                device=device,
                dtype=dtype,
                threads=threads,
                report=report,
            )
        stream = session.generate(
            session.chatted(prompt, len(image or ())) if chat else prompt,
            image or (),
            features=features,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            stream=True,
        )
        if as_json:
            typer.echo(json.dumps(session.to_json(stream.finished().answer)))
            return
        for note in stream.notes:
            typer.echo(f"note: {note}", err=True)
        for text in stream:
            typer.echo(printable(text), nl=False)
        typer.echo()
        for choice in stream.answer.choices:
            typer.echo(printable(str(choice)))
        typer.echo(stream.answer.summary(), err=True)


@contextmanager
def _compiling(engine: str) -> Generator[None]:
    """Within, what torch's compiler makes for an engine is kept in the store."""
    if engine != "compile":
        yield
        return
    from vlmc.emit.compiling import compiling_in
    from vlmc.emit.store import store

    with compiling_in(store()):
        yield
