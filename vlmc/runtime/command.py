"""The command line of a build that runs by itself."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vlmc.diagnostics.faults import EnvironmentFault, UsageError
from vlmc.runtime.assemble import deployed
from vlmc.runtime.design import Design
from vlmc.runtime.engines.names import ENGINES
from vlmc.runtime.engines.open import open_engine


def main(design: Design, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Answers a question by the artifacts of the build in `folder`; the exit code: 2 where the
    question is at fault, 3 where this machine is."""
    asked = _parser(design).parse_args(arguments)
    try:
        _answer(design, folder, asked)
    except UsageError as error:
        return _failed(str(error), 2, asked.json)
    except EnvironmentFault as error:
        return _failed(str(error), 3, asked.json)
    except ModuleNotFoundError as error:
        needed = f"--engine {asked.engine} needs the package {error.name}"
        return _failed(f"{needed}: pip install {error.name}", 3, asked.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def printable(text: str) -> str:
    """A piece of an answer for a terminal. A model may say anything, so nothing that steers a
    terminal passes."""
    kept = "".join(
        c
        if c in "\n\t" or not unicodedata.category(c).startswith("C")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return kept.encode(encoding, "replace").decode(encoding)


def _answer(design: Design, folder: Path, asked: argparse.Namespace) -> None:
    begun = time.perf_counter()
    if not (folder / "weights").is_dir():
        raise UsageError(
            f"{folder} has no weights: build it with `vlmc build {folder} --checkpoint DIR`"
        )
    engine = open_engine(folder, asked.engine, design, threads=asked.threads)
    session = deployed(folder, design, engine, tokenizer=asked.tokenizer)
    session.load_seconds = time.perf_counter() - begun
    stream = session.generate(
        session.chatted(asked.prompt, len(asked.image)) if asked.chat else asked.prompt,
        asked.image,
        features=asked.features,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=asked.stop,
        stream=True,
    )
    for note in () if asked.json else stream.notes:
        print(f"note: {note}", file=sys.stderr)
    for piece in stream:
        if not asked.json:
            print(printable(piece), end="", flush=True)
    if asked.json:
        print(json.dumps(session.to_json(stream.answer)))
        return
    print()
    for choice in stream.answer.choices:
        print(printable(str(choice)))
    print(stream.answer.summary(), file=sys.stderr)


def _failed(sentence: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"version": 1, "error": sentence, "exit": code}))
    else:
        print(f"error: {sentence}", file=sys.stderr)
    return code


def _parser(design: Design) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"Answers about images with {design.name}.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--engine", choices=ENGINES, default="eager", help="what runs it (default: eager)")
    add("--prompt", required=True, help="the question, with <image> where an image belongs")
    add("--image", action="append", default=[], help="an image file; may be repeated")
    add("--features", type=Path, help="region features in place of an image (safetensors)")
    add("--tokenizer", type=Path, help="tokenizer.json, or the folder that holds it")
    add("--max-new-tokens", type=int, default=64, help="tokens of the answer at most (64)")
    add("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    add("--top-p", type=float, help="draw from the likeliest that reach this probability")
    add("--top-k", type=int, help="draw from this many of the likeliest")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--stop", action="append", default=[], help="a text that ends the answer; may be repeated")
    add("--chat", action="store_true", help="put the prompt into the weights' chat template")
    add("--threads", type=int, help="threads that compute (default: as the engine chooses)")
    add("--json", action="store_true", help="print one JSON object")
    return parser
