"""The graphs under transformers.js' names, fed as that client feeds them: onnxruntime alone.

What it does with them is in its `models/session.js`, `models/modeling_utils.js` and
`models/llava` (4.3): features go to the placeholder's tokens, shorter rows are filled up on the
left, a cache begins empty in the shape that the graph declares, and only what the graph declares is
fed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlmc.emit.layout.graphs import BATCH
from vlmc.emit.layout.transformers_js import GRAPHS
from vlmc.runtime.engines.engine import Feature, Ids, Logits, Pixels, Row
from vlmc.runtime.engines.onnx_graph import onnx_runtime

PAST = "past_key_values."


@dataclass(slots=True)
class ClientState:
    """A generation: the mask so far [batch, tokens], and the decoder's cache by input name."""

    mask: Ids
    past: dict[str, NDArray[np.float32]]


class Client:
    """An engine over a folder with config.json and onnx/. `ending` chooses among the graphs'
    number formats, `_int8` for instance."""

    name = "transformers.js"
    capacity = None

    def __init__(self, folder: Path, ending: str = "") -> None:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.image_token = int(config["image_token_index"])
        self.padding = int(config.get("pad_token_id", 0))
        self.vision, self.embed, self.decoder = (
            _session(folder / "onnx" / f"{GRAPHS[ours]}{ending}.onnx")
            for ours in ("vision", "embed", "decoder")
        )
        self.wanted = {one.name: one for one in self.decoder.get_inputs()}

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature [tokens, width] for each image."""
        given = {"pixel_values": np.ascontiguousarray(pixels, np.float32)}
        return list(self.vision.run(["image_features"], given)[0])

    def prefill(self, rows: Sequence[Row]) -> tuple[ClientState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        longest = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), longest), self.padding, np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, longest - len(row.ids) :] = row.ids
            mask[index, longest - len(row.ids) :] = 1
        embeds = self._embedded(ids)
        features = [feature for row in rows for feature in row.features]
        if features:
            # One list for all rows, as the client flattens both.
            embeds[(ids == self.image_token) & (mask == 1)] = np.concatenate(features)
        state = ClientState(mask=mask, past=self._empty(len(rows)))
        return state, self._read(state, embeds)

    def step(self, state: ClientState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        ids = np.asarray(tokens, np.int64)[:, None]
        state.mask = np.concatenate((state.mask, np.ones_like(ids)), axis=1)
        return self._read(state, self._embedded(ids))

    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The client has no design that answers in one pass."""
        raise NotImplementedError

    def _embedded(self, ids: Ids) -> NDArray[np.float32]:
        return self.embed.run(["inputs_embeds"], {"input_ids": ids})[0]

    def _empty(self, batch: int) -> dict[str, NDArray[np.float32]]:
        """An empty cache: an extent is the number that the graph declares, the batch under its
        name, and 0 under any other."""
        names = {BATCH: batch}
        return {
            name: np.zeros([d if isinstance(d, int) else names.get(d, 0) for d in one.shape], "f")
            for name, one in self.wanted.items()
            if name.startswith(PAST)
        }

    def _read(self, state: ClientState, embeds: NDArray[np.float32]) -> Logits:
        positions = np.maximum(state.mask.cumsum(axis=1) - 1, 0)[:, -embeds.shape[1] :]
        known: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeds,
            "attention_mask": state.mask,
            "position_ids": positions,
            "num_logits_to_keep": np.array(1, np.int64),
            **state.past,
        }
        given = {name: known[name] for name in self.wanted}
        outputs = [one.name for one in self.decoder.get_outputs()]
        made = dict(zip(outputs, self.decoder.run(outputs, given), strict=True))
        state.past = {name: made[name.replace(PAST, "present.")] for name in state.past}
        return made["logits"][:, -1]


def _session(path: Path) -> Any:
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
