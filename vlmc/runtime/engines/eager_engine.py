"""The model itself as an engine: nothing compiled, every design, any sequence length."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Feature, Ids, Logits, Pixels, Row, padded


class EagerState:
    """A generation: the cache, and what is read from outside the sequence."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.seen: Tensor | None = None
        """What the newest token of each row sees: [batch, 1, images], or [batch, source]."""


class EagerEngine:
    """Runs a model in evaluation mode by its own methods. A feature is what the vision part gives
    for one image: a tensor [tokens, width], or keys and values [heads, tokens, head_dim] for each
    block that looks at images."""

    name = "eager"
    capacity: int | None = None

    def __init__(self, model: Any, design: Design) -> None:
        self.model = model
        self.design = design
        first = next(iter(model.parameters()))
        self.device: torch.device = first.device
        self.dtype: torch.dtype = first.dtype

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, self.dtype)  # pyright: ignore[reportUnknownMemberType]
        if self.design.serving != "cross_attention":
            visual = self.model.encode_images(values)
            if self.design.serving == "single_pass":
                visual = self.model.place(visual, None, None)
            return list(visual)
        visual = self.model.encode_images(values[:, None]).flatten(1, 2)
        pairs = self.model.memorise(visual)
        return [tuple((keys[i], values[i]) for keys, values in pairs) for i in range(len(visual))]

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Row]) -> tuple[EagerState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        model, state = self.model, EagerState(self.model.new_cache())
        ids, mask = self._padded(rows)
        last = torch.tensor([len(row.ids) - 1 for row in rows], device=self.device)
        x = self._filled(ids, rows)
        if self.design.serving == "encoder_decoder":
            state.memory = model.language.memorise(model.language.encode(x, mask))
            state.seen = mask
            return state, self.step(state, np.full(len(rows), self.design.start_token, np.int64))
        if self.design.serving == "cross_attention":
            state.memory, seen = self._outside(rows, ids.shape[1])
            hidden = model.read(x, mask, state.memory, self._keys(state, seen), state.cache)
            if seen is not None:
                state.seen = seen.gather(1, last[:, None, None].expand(-1, 1, seen.shape[2]))
        else:
            hidden = model.language(x, mask, state.cache)
        picked = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))
        return state, self._numbers(model.logits(picked)[:, 0])

    @torch.inference_mode()
    def step(self, state: EagerState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        ids = torch.tensor(tokens, device=self.device)[:, None]
        x = self.model.language.embed(ids)
        if self.design.serving == "encoder_decoder":
            hidden = self.model.language.decode(x, state.memory, state.seen, None, state.cache)
        elif self.design.serving == "cross_attention":
            seen = self._keys(state, state.seen)
            hidden = self.model.read(x, None, state.memory, seen, state.cache)
        else:
            hidden = self.model.language(x, None, state.cache)
        return self._numbers(self.model.logits(hidden)[:, -1])

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        model = self.model
        ids, mask = self._padded(rows)
        mask = torch.ones_like(ids) if mask is None else mask
        words = model.language.embed(ids)
        counts = [sum(len(one) for one in row.features) for row in rows]
        if max(counts) == 0:
            hidden = model.language(words, mask)
        else:
            visual = words.new_zeros(len(rows), max(counts), words.shape[2])
            for index, row in enumerate(rows):
                if row.features:
                    visual[index, : counts[index]] = torch.cat(row.features)
            shown = torch.arange(max(counts), device=self.device)
            seen = (shown < torch.tensor(counts, device=self.device)[:, None]).long()
            hidden = model.read(words, mask, visual, seen)
        # An emitted model.py drops an argument that its design never reads.
        read = inspect.signature(model.head.forward).parameters
        words = {"embedding": model.language.embedding} if "embedding" in read else {}
        output = model.head(hidden, mask, **words)
        found = {"logits": self._numbers(output.logits)}
        pairs = getattr(output, "seq_relationship_logits", None)
        if pairs is not None:
            found["seq_relationship_logits"] = self._numbers(pairs)
        return found

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor | None]:
        """Ids [batch, text], padded on the right, and their mask; None where nothing is padding."""
        ids, mask = padded(rows)
        placed = torch.tensor(ids, device=self.device)
        return placed, None if mask.all() else torch.tensor(mask, device=self.device)

    def _filled(self, ids: Tensor, rows: Sequence[Row]) -> Tensor:
        """Embeddings with visual tokens in their places."""
        x = self.model.language.embed(ids)
        for index, row in enumerate(rows):
            if row.visual.any():
                places = torch.tensor(np.flatnonzero(row.visual), device=self.device)
                x[index, places] = torch.cat(row.features).to(x.dtype)
        return x

    def _outside(
        self, rows: Sequence[Row], text: int
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Keys and values [batch, heads, images * tokens, head_dim] of the images of each row for
        each block, and which image each token sees: [batch, text, images]. A row with fewer images
        has zeros behind its own, which nobody sees."""
        most = max(len(row.features) for row in rows)
        if most == 0:
            return [], None
        seen = np.zeros((len(rows), text, most), np.bool_)
        for index, row in enumerate(rows):
            if row.seen is not None:
                seen[index, : len(row.ids), : row.seen.shape[1]] = row.seen
        example = next(row.features[0] for row in rows if row.features)
        memory: list[tuple[Tensor, Tensor]] = []
        for block, (key, _) in enumerate(example):
            nothing = torch.zeros_like(key)
            sides: list[Tensor] = []
            for side in (0, 1):
                images = [
                    torch.cat(
                        [one[block][side] for one in row.features]
                        + [nothing] * (most - len(row.features)),
                        dim=1,
                    )
                    for row in rows
                ]
                sides.append(torch.stack(images))
            memory.append((sides[0], sides[1]))
        return memory, torch.tensor(seen, device=self.device)

    def _keys(self, state: EagerState, seen: Tensor | None) -> Tensor | None:
        """The mask [batch, 1, tokens, keys] of what is seen by image: [batch, tokens, images]."""
        if seen is None:
            return None
        tokens = state.memory[0][0].shape[2] // seen.shape[2]
        return seen.repeat_interleave(tokens, dim=-1)[:, None]

    def _numbers(self, logits: Tensor) -> Logits:
        return logits.float().cpu().numpy()
