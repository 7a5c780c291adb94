"""What a step of the engines for torch allocates and calls."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import Twin, calls, generated
from exported_twins import exported
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from vlmc.runtime.engines import kept_memory
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.torch_engine import TorchState


@pytest.fixture
def twins(compile_twins: dict[str, Twin]) -> dict[str, Twin]:
    return compile_twins


def living_tensors() -> int:
    # Of its type: to ask torch's own deprecated objects for their class warns.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_step_keeps_nothing(twins: dict[str, Twin]) -> None:
    one = twins["llava-1.5"]
    engine = exported(one)
    state, logits = engine.prefill(one.rows(engine, (0, 1), (4, 6)))
    token = logits.argmax(-1)
    for _ in range(5):
        engine.step(state, token)
    held = [tensor.data_ptr() for tensor in state.inputs]
    gc.collect()
    alive = living_tensors()
    for _ in range(100):
        engine.step(state, token)
    gc.collect()
    assert living_tensors() <= alive
    assert [tensor.data_ptr() for tensor in state.inputs] == held


class Noting(TorchFunctionMode):
    """Notes every tensor that a call of torch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if issubclass(type(found), torch.Tensor):
            self.given.append(found)
        return found


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("llava-1.5", None), ("llava-1.5", 40), ("flamingo", None), ("blip2-flan-t5", None)],
)
def test_a_step_makes_no_tensor(twins: dict[str, Twin], name: str, blocks: int | None) -> None:
    """Neither what surrounds a graph nor the graph gives one."""
    one = twins[name]
    engine = exported(one, blocks)
    state, logits = engine.prefill(one.rows(engine, (1, 0), (7, 5)))
    token = logits.argmax(-1)
    engine.step(state, token)
    with torch.inference_mode():
        assert state.program(state.inputs) == [None]
    state.program = lambda inputs: []
    before = list(state.inputs)
    with Noting() as noted:
        assert engine.step(state, token) is engine.step(state, token)
    assert all(a is b for a, b in zip(state.inputs, before, strict=True))
    assert all(any(one is own for own in before) for one in noted.given)
    assert noted.given, "the slots are made longer in place"


def owned(state: TorchState) -> list[int]:
    """Where everything lies that a generation holds."""
    arrays = [array.ctypes.data for array in (*state.numbers, state.last)]
    tensors = [*state.inputs, *state.own, *state.on_host, state.read]
    return [*arrays, *(tensor.data_ptr() for tensor in tensors)]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("llava-1.5", None), ("llava-1.5", 40), ("flamingo", None), ("blip2-flan-t5", None)],
)
def test_steps_write_where_the_prompt_made_room(
    twins: dict[str, Twin], name: str, blocks: int | None
) -> None:
    one = twins[name]
    engine = exported(one, blocks)
    state, logits = engine.prefill(one.rows(engine, (1, 0), (7, 5)))
    held, begun = owned(state), state.last.copy()
    for step in range(1, 17):
        token = logits.argmax(-1)
        logits = engine.step(state, token)
        assert owned(state) == held
        assert state.inputs[0][:, 0].tolist() == token.tolist()
        assert state.inputs[1][:, 0].tolist() == (begun + step).tolist()


def given_by_torch(run: Callable[[], object]) -> list[int]:
    """Bytes of each block that torch's allocator gives while `run` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    # What profilers make of them leaves out what is given within an operation.
    events: Any = found.profiler.kineto_results.events()
    return [size for event in events if event.name() == "[memory]" and (size := event.nbytes()) > 0]


def test_graphs_that_are_compiled_when_they_are_used(twins: dict[str, Twin]) -> None:
    one = twins["llava-1.5"]
    told: list[str] = []
    engine = open_engine(one.folder, "compile", one.design, report=told.append)
    expected = generated(one.reference, one.rows(one.reference, (0,), (5,)))
    for _ in range(2):
        found = generated(engine, one.rows(engine, (0,), (5,)))
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
        assert (found[0] == expected[0]).all()
    assert told == ["compiling prefill", "compiling decode_one"]
    state, logits = engine.prefill(one.rows(engine, (0,), (5,)))
    token = logits.argmax(-1)
    engine.step(state, token)
    found = calls(lambda: engine.step(state, token))
    # Python looks once at each tensor that it hands over; it makes none and calls no kernel.
    del found["isinstance"]
    assert max(found.values()) <= 20, found
    assert not [name for name in found if name.startswith(("empty_strided", "kernel"))], found
    assert engine.step(state, token) is engine.step(state, token)
    assert given_by_torch(lambda: torch.zeros(3)) == [12]
    # torch.compile hands the one extent that varies over as a tensor.
    assert given_by_torch(lambda: engine.step(state, token)) == [8]


def test_a_second_copy_of_kept_memory_takes_the_place_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build's run.py carries one; both at once would write the blocks twice."""
    common: Any = import_module("torch._inductor.codegen.common")
    common.init_backend_registration()
    cpu = common.device_codegens["cpu"]
    monkeypatch.setattr(cpu, "cpp_wrapper_codegen", cpu.cpp_wrapper_codegen)
    for name in ("first", "second"):
        found: Any = spec_from_file_location(name, kept_memory.__file__)
        copy: Any = module_from_spec(found)
        found.loader.exec_module(copy)
        copy.kept_memory()
        registered = cpu.cpp_wrapper_codegen
        assert registered.__module__ == name
        assert [one.__module__.split(".")[0] for one in registered.__mro__[:2]] == [name, "torch"]
