"""An open ONNX graph and a generation in it: needs onnxruntime and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vlmc.diagnostics.faults import EnvironmentFault, UsageError
from vlmc.runtime.engines.engine import Ids, Logits
from vlmc.runtime.engines.onnx_values import OnnxValues

ONNX_RUNTIME = "1.23"
"""The first ONNX Runtime with every operator of opset 23."""
ONNX_ROOM = 256
"""Tokens by which a cache has more room than it needs when it is made."""


class OnnxGraph:
    """An open graph: what it takes and gives, and how far its extents may vary."""

    def __init__(self, path: Path, threads: int | None) -> None:
        runtime = onnx_runtime()
        if not path.is_file():
            raise EnvironmentFault(
                f"{path}: there is no such graph; build it with --artifacts onnx"
            )
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self.session: Any = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise EnvironmentFault(
                f"{path}: ONNX Runtime {runtime.__version__} cannot open it (onnxruntime>="
                f"{ONNX_RUNTIME} is needed, and every file as it was built): {error}"
            ) from None
        self.inputs: dict[str, Any] = {one.name: one for one in self.session.get_inputs()}
        self.outputs: dict[str, Any] = {one.name: one for one in self.session.get_outputs()}
        notes = self.session.get_modelmeta().custom_metadata_map
        try:
            self.bounds = cast("dict[str, list[int]]", json.loads(notes["vlmc.bounds"]))
            self.image_tokens = int(notes["vlmc.image_tokens"])
        except (KeyError, ValueError):
            raise EnvironmentFault(
                f"{path}: lacks what vlmc notes in a graph, as where another tool has saved it; "
                "build it again"
            ) from None
        self.in_place = notes.get("vlmc.cache") == "in place"
        """Whether the newest tokens may be written behind the others in one buffer."""

    def run(self, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output."""
        return self.session.run(None, given)


class OnnxState:
    """A generation.

    All that a step reads and writes is allocated before it. Where graphs write a cache in place, it
    is one set of buffers, bound when it is made, as is all else that stays the same; elsewhere a
    step reads one set and writes the other, and all that it reads is handed over in one call, all
    that it writes in another, since every tensor of the cache has a new length. A cache has
    `ONNX_ROOM` tokens more room than it needs when it is made or outgrown.
    """

    def __init__(self, graph: OnnxGraph, embed: OnnxGraph, seen: NDArray[np.int64], limit: int):
        """`seen` [batch, prompt] is 1 at tokens, 0 at padding."""
        self.graph = graph
        self.embed = embed
        self.limit = limit
        self.length = 0
        """Tokens that the cache holds, padding included."""
        batch, prompt = seen.shape
        self.seen = np.ones((batch, limit), np.int64)
        self.seen[:, :prompt] = seen
        self.mask = np.empty(batch * limit, np.int64)
        """The part of `seen` that is read, without gaps."""
        self.tensors = [
            (name, name.replace("past_key_values", "present"), one.shape[1], one.shape[3])
            for name, one in graph.inputs.items()
            if name.startswith("past_key_values.")
        ]
        """Of the cache: as it is read, as it is written, heads and width."""
        self.sets: list[list[NDArray[np.float32]]] = [[]] if graph.in_place else [[], []]
        self.places: list[list[int]] = [[] for _ in self.sets]
        """Where in memory the tensors of each set begin."""
        self.room = 0
        self.turn = 0
        self.outside: dict[str, NDArray[Any]] = {}
        """What is read from outside the sequence, by the name of its input."""
        self.ids = np.empty((batch, 1), np.int64)
        width = graph.inputs["inputs_embeds"].shape[2]
        self.newest = np.empty((batch, 1, width), np.float32)
        self.logits = np.empty((batch, 1, graph.outputs["logits"].shape[2]), np.float32)
        self.answer = self.logits[:, 0]
        self.looking: Any = embed.session.io_binding()
        _bind(self.looking.bind_input, "input_ids", self.ids)
        _bind(self.looking.bind_output, "inputs_embeds", self.newest)
        self.binding: Any = graph.session.io_binding()
        _bind(self.binding.bind_output, "logits", self.logits)
        self.bound: NDArray[np.float32] | None = None
        self.growing: OnnxGrowing | None = None

    def look_at(self, name: str, values: NDArray[Any]) -> None:
        """Sets an input from outside the sequence."""
        self.outside[name] = np.ascontiguousarray(values)
        if self.graph.in_place:
            _bind(self.binding.bind_input, name, self.outside[name])
        self.growing = None

    def step(self, tokens: Ids) -> Logits:
        """Appends a token [batch] to each row."""
        self.ids[:, 0] = tokens
        self.embed.session.run_with_iobinding(self.looking)
        return self.run(self.newest)

    def run(self, embeds: NDArray[np.float32]) -> Logits:
        """Appends tokens [batch, tokens, width]; the logits [batch, vocabulary] after the last that
        is no padding."""
        total = self.length + embeds.shape[1]
        if total > self.limit:
            raise UsageError(
                f"the sequence has {total} tokens, but the graphs are made for {self.limit}"
            )
        mask = self.mask[: len(self.seen) * total].reshape(-1, total)
        mask[:] = self.seen[:, :total]
        if total > self.room:
            self._grow(min(self.limit, total + ONNX_ROOM))
        if self.graph.in_place:
            self._run_bound(embeds, mask)
        else:
            self.growing = self.growing or OnnxGrowing(self)
            self.growing.run(self, embeds, mask)
            self.turn = 1 - self.turn
        self.length = total
        return self.answer

    def _run_bound(self, embeds: NDArray[np.float32], mask: NDArray[np.int64]) -> None:
        if embeds is not self.bound:
            self.bound = embeds
            _bind(self.binding.bind_input, "inputs_embeds", embeds)
        _bind(self.binding.bind_input, "attention_mask", mask)
        self.graph.session.run_with_iobinding(self.binding)

    def _grow(self, room: int) -> None:
        """Makes room for as many tokens; what the cache holds stays."""
        rows = len(self.seen)
        shapes = [(rows, heads, room, width) for _, _, heads, width in self.tensors]
        if self.graph.in_place:
            larger = [np.empty(shape, np.float32) for shape in shapes]
            for old, new in zip(self.sets[0], larger, strict=False):
                new[:, :, : self.length] = old[:, :, : self.length]
            self._keep(0, larger)
            self.room = room
            self._bind_cache(room)
            return
        for turn in range(2):
            held = self.sets[turn] if turn == self.turn and self.length else []
            larger = [np.empty(int(np.prod(shape)), np.float32) for shape in shapes]
            for old, new in zip(held, larger, strict=False):
                new[: old.size] = old
            self._keep(turn, larger)
        self.room = room

    def _keep(self, turn: int, buffers: list[NDArray[np.float32]]) -> None:
        self.sets[turn] = buffers
        self.places[turn] = [one.ctypes.data for one in buffers]

    def _bind_cache(self, room: int) -> None:
        """Binds the only set as what is read and as what is written."""
        rows, read, write = len(self.seen), self.binding.bind_input, self.binding.bind_output
        for (past, present, heads, width), place in zip(self.tensors, self.places[0], strict=True):
            read(past, "cpu", 0, np.float32, (rows, heads, room, width), place)
            write(present, "cpu", 0, np.float32, (rows, heads, room, width), place)


class OnnxGrowing:
    """How a generation hands its tensors to a graph that gives its cache back longer: the same
    calls whatever the depth."""

    def __init__(self, state: OnnxState) -> None:
        self.options: Any = onnx_runtime().RunOptions()
        outside = list(state.outside.values())
        self.places = [one.ctypes.data for one in outside]
        self.shapes = [one.shape for one in outside]
        _, _, heads, width = state.tensors[0]
        assert all((own, wide) == (heads, width) for _, _, own, wide in state.tensors)
        self.heads, self.width = heads, width
        floats, number = np.float32, {name: one.dtype.type for name, one in state.outside.items()}
        past = {name: floats for name, _, _, _ in state.tensors}
        own = {"inputs_embeds": floats, "attention_mask": np.int64}
        self.read = OnnxValues({**own, **number, **past})
        self.write = OnnxValues(
            {"logits": floats, **{name: floats for _, name, _, _ in state.tensors}}
        )

    def run(self, state: OnnxState, embeds: NDArray[np.float32], mask: NDArray[np.int64]) -> None:
        """Reads the set whose turn it is and writes the other."""
        read, write = self.read, self.write
        rows, layers = len(state.seen), len(state.tensors)
        before = (rows, self.heads, state.length, self.width)
        after = (rows, self.heads, mask.shape[1], self.width)
        given = read.at(
            [embeds.ctypes.data, mask.ctypes.data, *self.places, *state.places[state.turn]],
            [embeds.shape, mask.shape, *self.shapes, *[before] * layers],
        )
        made = write.at(
            [state.logits.ctypes.data, *state.places[1 - state.turn]],
            [state.logits.shape, *[after] * layers],
        )
        state.graph.session.run_with_ortvaluevector(
            self.options, read.names, given, write.names, made, write.devices
        )


def _bind(bind: Any, name: str, values: NDArray[Any]) -> None:
    bind(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)


def onnx_runtime() -> Any:
    """The package. Raises EnvironmentFault where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise EnvironmentFault(
            f"the engine onnx needs ONNX Runtime: pip install 'onnxruntime>={ONNX_RUNTIME}'"
        ) from None
    return onnxruntime
