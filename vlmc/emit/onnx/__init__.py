"""ONNX graphs that read the build's own weights."""

from vlmc.emit.onnx.writer import write

__all__ = ["write"]
