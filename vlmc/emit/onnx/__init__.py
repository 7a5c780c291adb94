"""ONNX graphs that read the build's own weights."""

from vlmc.emit.onnx.options import OnnxOptions
from vlmc.emit.onnx.writer import write

__all__ = ["OnnxOptions", "write"]
