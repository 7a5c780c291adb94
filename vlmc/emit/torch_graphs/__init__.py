"""compile/ and aoti/: a design's graphs for torch, without weights."""

from vlmc.emit.torch_graphs.aoti import write_aoti
from vlmc.emit.torch_graphs.programs import write_compile

__all__ = ["write_aoti", "write_compile"]
