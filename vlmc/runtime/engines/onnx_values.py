"""Tensors for ONNX graphs, handed over in one call: needs onnxruntime and numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


class OnnxValues:
    """What a graph reads, or what it writes, by name, in memory of its caller's.

    A binding takes a call for each tensor. Where all of a cache's are longer at each step than at
    the one before, that is a call or two for each layer; here it is one for all of them.
    """

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        """`numbers` says numpy's number format of each."""
        # Where ONNX Runtime keeps what its own Python code is made of.
        own: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        self.names = list(numbers)
        self.numbers = list(numbers.values())
        self.made: Any = own.OrtValueVector
        self.owners = [None] * len(self.names)
        cpu = own.OrtDevice(own.OrtDevice.cpu(), own.OrtDevice.default_memory(), 0)
        self.devices = [cpu] * len(self.names)

    def at(self, places: Sequence[int], shapes: Sequence[Sequence[int]]) -> Any:
        """The tensors at these addresses, in the order of their names."""
        values = self.made()
        values.push_back_batch(self.owners, places, self.numbers, shapes, self.devices)
        return values
