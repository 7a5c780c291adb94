"""Graphs for torch as an engine: compiled ahead of time (aoti) or when they are used (compile)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmc.diagnostics.faults import EnvironmentFault, UsageError
from vlmc.runtime.design import Design
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
from vlmc.runtime.engines.graph_files import GraphFile, GraphFolder, GraphWire
from vlmc.runtime.engines.paged import Blocks, BlockTable

TorchProgram = Callable[[list["Tensor"]], list["Tensor"]]


class TorchState:
    """A generation.

    `inputs` is the list that the graph of a step is called with: tokens, positions and slots, what
    is read from outside the sequence, the caches (or a block table and the pool), and the logits
    that it writes, all allocated before the first step. Between two steps tokens and positions are
    overwritten, and the slots made longer where they lie. What a graph computes in is its own to
    keep: see `kept_memory`.
    """

    def __init__(
        self,
        program: TorchProgram,
        inputs: list[Tensor],
        last: NDArray[np.int64],
        table: BlockTable | None,
    ) -> None:
        self.program = program
        self.inputs = inputs
        self.last = last
        """The position of the newest token of each row."""
        self.table = table
        self.slots = inputs[2]
        """All of them at first: as much as there is room for."""
        self.own = inputs[:2]
        self.on_host = [tensor.cpu() for tensor in self.own]
        """The same tensors where they are on the host already."""
        self.numbers = [tensor.numpy() for tensor in self.on_host]
        self.logits = inputs[-1]
        self.read = self.logits.float().cpu()
        """The same tensor where it is fp32 on the host already."""
        self.answer = self.read.numpy()[:, 0]

    def put(self, tokens: Ids, seen: int) -> None:
        """Puts the next token of each row, its position and the slots that it sees in place."""
        self.numbers[0][:, 0] = tokens
        self.numbers[1][:, 0] = self.last
        for there, here in zip(self.own, self.on_host, strict=True):
            if there is not here:
                there.copy_(here)
        self.slots.resize_(seen)

    def step(self) -> Logits:
        """The logits [batch, vocabulary] after what was put in place."""
        self.program(self.inputs)
        if self.read is not self.logits:
            self.read.copy_(self.logits)
        return self.answer


class TorchEngine:
    """Runs the graphs of a build. A feature is a tuple of what the vision graph gives for one
    image, each output without its first dimension."""

    def __init__(
        self,
        name: str,
        graphs: GraphFolder,
        design: Design,
        load: Callable[[GraphFile], TorchProgram],
        blocks: int | None = None,
    ) -> None:
        """`load` opens a graph. With `blocks`, key/value caches lie in a pool of so many blocks,
        which all generations share; otherwise each generation has its own."""
        self.name = name
        self.graphs = graphs.graphs
        self.capacity = graphs.capacity
        self.design = design
        self.device = torch.device(graphs.place)
        self.dtype: torch.dtype = getattr(torch, graphs.dtype)
        self._load = load
        self._kind = "" if blocks is None else "paged_"
        self._blocks = blocks
        self._pool: tuple[Blocks, list[Tensor]] | None = None
        self._programs: dict[str, TorchProgram] = {}

    @property
    def most_rows(self) -> int | None:
        """Rows of one batch at most."""
        reader = self.graphs["model" if self.design.serving == "single_pass" else "decode"]
        return reader.most("batch")

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, self.dtype)  # pyright: ignore[reportUnknownMemberType]
        most = self.graphs["vision"].most("images") or 1
        found: list[Feature] = []
        for start in range(0, len(values), most):
            batch = values[start : start + most]
            outputs = self._program("vision")([batch])
            found += [tuple(one[index] for one in outputs) for index in range(len(batch))]
        return found

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Row]) -> tuple[TorchState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        self._check(rows)
        ids, mask = self._padded(rows)
        x = self._filled(ids, rows)
        last = np.array([len(row.ids) - 1 for row in rows], np.int64)
        if self.design.serving == "encoder_decoder":
            memory = self._program("encoder")([x, mask])
            outside = [*(side.contiguous() for side in memory), mask]
            state = self._begin(len(rows), outside, np.full(len(rows), -1, np.int64))
            return state, self.step(state, np.full(len(rows), self.design.start_token, np.int64))
        where = torch.from_numpy(last).to(self.device)  # pyright: ignore[reportUnknownMemberType]
        outside = self._outside(rows, ids.shape[1])
        state = self._begin(len(rows), outside, last)
        caches = state.inputs[3 + len(outside) : -1]
        logits = self._program(f"{self._kind}prefill")([x, where, *outside, *caches])[0]
        if outside:
            # From now on a token sees what the last one of the prompt saw.
            seen = outside[-1]
            newest = where[:, None, None].expand(-1, 1, seen.shape[2])
            state.inputs[3 + len(outside) - 1] = seen.gather(1, newest)
        return state, self._numbers(logits)

    @torch.inference_mode()
    def step(self, state: TorchState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        seen = int(state.last.max()) + 2
        if self.capacity is not None and seen > self.capacity:
            raise UsageError(
                f"the {self.name} graphs of this build hold {self.capacity} tokens of a sequence, "
                "and all are taken; a larger token_budget holds more"
            )
        if state.table is not None:
            self._reach(state, state.table, state.last + 1)
        state.last += 1
        state.put(tokens, seen)
        return state.step()

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        self._check(rows)
        ids, mask = self._padded(rows)
        graph = self.graphs["model"]
        counts = [sum(len(one[0]) for one in row.features) for row in rows]
        width = graph.inputs[2].dims[2]
        assert isinstance(width, int)
        # Without any image, one visual token that nobody sees.
        shape = (len(rows), max(1, *counts), width)
        visual = torch.zeros(shape, dtype=self.dtype, device=self.device)
        shown = torch.zeros(shape[:2], dtype=torch.int64, device=self.device)
        for index, row in enumerate(rows):
            if row.features:
                visual[index, : counts[index]] = torch.cat([one[0] for one in row.features])
                shown[index, : counts[index]] = 1
        outputs = self._program("model")([ids, mask, visual, shown])
        return {
            wire.name: self._on_host(output)
            for wire, output in zip(graph.outputs, outputs, strict=True)
        }

    def _program(self, name: str) -> TorchProgram:
        if name not in self._programs:
            if name not in self.graphs:
                raise EnvironmentFault(
                    f"the {self.name} graphs of this build lack {name}; build it again"
                )
            self._programs[name] = self._load(self.graphs[name])
        return self._programs[name]

    def _check(self, rows: Sequence[Row]) -> None:
        """Raises UsageError where the graphs do not reach."""
        check_rows(self.name, len(rows), self.most_rows)
        text = self.graphs["model" if "embed" not in self.graphs else "embed"].most("text")
        check_length(self.name, max(len(row.ids) for row in rows), text)

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Ids [batch, text], padded on the right, and their mask."""
        ids, mask = padded(rows)
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _filled(self, ids: Tensor, rows: Sequence[Row]) -> Tensor:
        """Embeddings with visual tokens in their places."""
        x = self._program("embed")([ids])[0]
        for index, row in enumerate(rows):
            if row.visual.any():
                places = torch.tensor(np.flatnonzero(row.visual), device=self.device)
                x[index, places] = torch.cat([one[0] for one in row.features])
        return x

    def _outside(self, rows: Sequence[Row], text: int) -> list[Tensor]:
        """Keys and values [batch, heads, images * tokens, head_dim] of the images of each row, and
        which image each token sees: [batch, text, images]. A row with fewer images has zeros behind
        its own, and a batch without any one image of zeros, which nobody sees."""
        if self.design.serving != "cross_attention":
            return []
        most = max(1, *(len(row.features) for row in rows))
        wires = self.graphs["vision"].outputs
        shapes = [[most, *(extent for extent in wire.dims[1:])] for wire in wires]
        seen = torch.zeros(len(rows), text, most, dtype=torch.bool, device=self.device)
        memory: list[Tensor] = []
        for shape in shapes:
            sizes = [len(rows), *(int(extent) for extent in shape)]
            memory.append(torch.zeros(sizes, dtype=self.dtype, device=self.device))
        for index, row in enumerate(rows):
            for place, feature in enumerate(row.features):
                for side, values in zip(memory, feature, strict=True):
                    side[index, place] = values
            if row.seen is not None:
                shown = torch.tensor(row.seen, device=self.device)
                seen[index, : len(row.ids), : shown.shape[1]] = shown
        # [batch, images, heads, tokens, head_dim] -> [batch, heads, images * tokens, head_dim]
        return [*(side.transpose(1, 2).flatten(2, 3).contiguous() for side in memory), seen]

    def _begin(self, batch: int, outside: list[Tensor], last: NDArray[np.int64]) -> TorchState:
        """The state of a generation, its caches empty. They are zeros: what lies behind the end of
        a row is masked out, and must be a number for that."""
        name = "decode_one" if batch == 1 and not self._kind else f"{self._kind}decode"
        own = [torch.zeros(batch, 1, dtype=torch.int64, device=self.device) for _ in range(2)]
        assert self.capacity is not None
        inputs = [*own, torch.arange(self.capacity, device=self.device), *outside]
        *caches, answer = [wire for wire in self.graphs[name].inputs if wire.written]
        logits = self._zeros([answer], batch)
        if self._blocks is None:
            inputs += [*self._zeros(caches, batch), *logits]
            return TorchState(self._program(name), inputs, last.copy(), None)
        if self._pool is None:
            # Block 0 is nobody's.
            made = self._zeros(caches, self._blocks + 1)
            self._pool = Blocks(self._blocks, made[0].shape[2]), made
        blocks, pools = self._pool
        width = next(wire for wire in self.graphs[name].inputs if wire.name == "table").dims[1]
        table = BlockTable(blocks, batch, int(width))
        numbers = torch.zeros(batch, int(width), dtype=torch.int64, device=self.device)
        inputs += [numbers, *pools, *logits]
        state = TorchState(self._program(name), inputs, last.copy(), table)
        table.owned_by(state)
        self._reach(state, table, last)
        return state

    def _zeros(self, wires: Sequence[GraphWire], first: int) -> list[Tensor]:
        """Zeros for inputs that a graph writes into; `first` is their first extent."""
        sizes = [[first, *(int(extent) for extent in wire.dims[1:])] for wire in wires]
        return [torch.zeros(size, dtype=self.dtype, device=self.device) for size in sizes]

    def _reach(self, state: TorchState, table: BlockTable, last: NDArray[np.int64]) -> None:
        """Makes room for the newest token of each row."""
        if table.reach([int(one) for one in last]):
            place = next(
                i
                for i, wire in enumerate(self.graphs["paged_decode"].inputs)
                if wire.name == "table"
            )
            state.inputs[place].copy_(torch.from_numpy(table.numbers))  # pyright: ignore[reportUnknownMemberType]

    def _numbers(self, logits: Tensor) -> Logits:
        """Logits [batch, 1, vocabulary] on the host: [batch, vocabulary]."""
        return self._on_host(logits)[:, 0]

    def _on_host(self, values: Tensor) -> NDArray[Any]:
        return values.float().cpu().numpy()
