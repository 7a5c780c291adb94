"""A build's ONNX graphs as an engine: needs onnxruntime and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.runtime.engines.engine import (
    Feature,
    Ids,
    Logits,
    Pixels,
    Row,
    check_length,
    check_rows,
    padded,
)
from vlmc.runtime.engines.onnx_graph import OnnxGraph, OnnxState, onnx_runtime


class OnnxEngine:
    """Runs the graphs below `folder`; a session for each is opened when it is first needed.

    A feature is the vision graph's output for one image: [tokens, width], or keys and values
    [heads, tokens, head_dim] for each block that looks at images. `variant` (int8, int4) runs
    quantised graphs; of those that there are none of, the plain ones. Raises EnvironmentFault where
    onnxruntime is missing or cannot open a graph.
    """

    def __init__(
        self,
        folder: Path,
        *,
        serving: str,
        start_token: int | None = None,
        variant: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.serving = serving
        self.start_token = start_token
        self.variant = variant
        self.name = "onnx" if variant is None else f"onnx-{variant}"
        self.threads = threads
        self._open: dict[str, OnnxGraph] = {}
        onnx_runtime()
        last = "model" if serving == "single_pass" else "decoder"
        if variant is not None and not (folder / f"{last}.{variant}.onnx").is_file():
            raise EnvironmentFault(
                f"{folder}: holds no {variant} graphs; build them with --quantize {variant}"
            )

    @property
    def capacity(self) -> int | None:
        """Tokens that the sequence of one row may have."""
        if self.serving == "single_pass":
            return self.graph("model").bounds["sequence_length"][1]
        return self.graph("decoder").bounds["past_sequence_length"][1] + 1

    @property
    def most_rows(self) -> int:
        """Rows of one batch at most."""
        last = "model" if self.serving == "single_pass" else "decoder"
        return self.graph(last).bounds["batch_size"][1]

    def graph(self, name: str) -> OnnxGraph:
        """The graph of a stage, open."""
        if name not in self._open:
            path = self.folder / f"{name}.onnx"
            chosen = self.folder / f"{name}.{self.variant}.onnx"
            # Looking words up is not worth a pool of threads, which would stand in others' way.
            threads = 1 if name == "embed" else self.threads
            self._open[name] = OnnxGraph(chosen if chosen.is_file() else path, threads)
        return self._open[name]

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image; see `Engine.encode_images`."""
        graph = self.graph("vision")
        (name,) = graph.inputs
        found = graph.run({name: np.ascontiguousarray(pixels, np.float32)})
        if self.serving != "cross_attention":
            return list(found[0])
        pairs = list(zip(found[::2], found[1::2], strict=True))
        return [tuple((keys[i], values[i]) for keys, values in pairs) for i in range(len(pixels))]

    def prefill(self, rows: Sequence[Row]) -> tuple[OnnxState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        ids, mask = padded(rows)
        decoder = self.graph("decoder")
        first = self.graph("encoder") if self.serving == "encoder_decoder" else decoder
        self._check(first, ids, rows)
        embeds = self._embedded(ids)
        for index, row in enumerate(rows):
            if row.visual.any():
                embeds[index, np.flatnonzero(row.visual)] = np.concatenate(row.features)
        if self.serving == "encoder_decoder":
            memory = first.run({"inputs_embeds": embeds, "attention_mask": mask})
            state = self._state(decoder, np.empty((len(rows), 0), np.int64))
            for name, values in zip(first.outputs, memory, strict=True):
                state.look_at(name, values)
            state.look_at("memory_mask", mask)
            return state, self.step(state, np.full(len(rows), self.start_token, np.int64))
        state = self._state(decoder, mask)
        if self.serving == "cross_attention":
            for name, values in self._memory(decoder, rows, ids.shape[1]).items():
                state.look_at(name, values)
        logits = state.run(embeds)
        if "seen" in state.outside:
            # New tokens see what the last token of their row saw.
            last = [(len(row.ids) - 1) for row in rows]
            state.look_at("seen", state.outside["seen"][np.arange(len(rows)), last][:, None])
        return state, logits

    def step(self, state: OnnxState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        return state.step(tokens)

    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        graph = self.graph("model")
        ids, mask = padded(rows)
        self._check(graph, ids, rows)
        counts = [sum(len(one) for one in row.features) for row in rows]
        shape = (len(rows), max(1, *counts), graph.inputs["image_features"].shape[2])
        visual = np.zeros(shape, np.float32)
        seen = np.zeros(shape[:2], np.int64)
        for index, row in enumerate(rows):
            if row.features:
                visual[index, : counts[index]] = np.concatenate(row.features)
                seen[index, : counts[index]] = 1
        found = graph.run(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "image_features": visual,
                "visual_mask": seen,
            }
        )
        sizes = {ids.shape[1] + shape[1]: ids.shape[1] + max(counts)}
        # Where no row has an image, what stood for one is no part of the answer.
        return {
            name: one[:, : sizes.get(one.shape[1])] if one.ndim == 3 else one
            for name, one in zip(graph.outputs, found, strict=True)
        }

    def _state(self, decoder: OnnxGraph, mask: NDArray[np.int64]) -> OnnxState:
        assert self.capacity is not None
        return OnnxState(decoder, self.graph("embed"), mask, self.capacity)

    def _check(self, graph: OnnxGraph, ids: Ids, rows: Sequence[Row]) -> None:
        """Raises UsageError for prompts that the graphs are not made for."""
        bounds = graph.bounds
        longest = bounds.get("encoder_sequence_length") or bounds["sequence_length"]
        check_length(self.name, ids.shape[1], longest[1])
        check_rows(self.name, len(rows), bounds["batch_size"][1])

    def _embedded(self, ids: Ids) -> NDArray[np.float32]:
        return self.graph("embed").run({"input_ids": ids})[0]

    def _memory(self, graph: OnnxGraph, rows: Sequence[Row], text: int) -> dict[str, NDArray[Any]]:
        """Keys and values [batch, heads, images * tokens, head_dim] of each row's images, and who
        sees which: [batch, text, images]. What fills up a row with fewer images is seen by nobody,
        and so is the one image where there is none at all."""
        names = [name for name in graph.inputs if name.startswith("memory.")]
        most = max(1, *(len(row.features) for row in rows))
        seen = np.zeros((len(rows), text, most), np.bool_)
        tokens = graph.image_tokens
        found: dict[str, NDArray[Any]] = {}
        for index, name in enumerate(names):
            _, heads, _, width = graph.inputs[name].shape
            joined = np.zeros((len(rows), heads, most * tokens, width), np.float32)
            for row, one in zip(joined, rows, strict=True):
                for number, feature in enumerate(one.features):
                    own = feature[index // 2][index % 2]
                    row[:, number * tokens : number * tokens + own.shape[1]] = own
            found[name] = joined
        for row, one in zip(seen, rows, strict=True):
            if one.seen is not None:
                row[: len(one.ids), : one.seen.shape[1]] = one.seen
        return {**found, "seen": seen}
