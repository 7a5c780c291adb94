"""The document: YAML -> ModelSpec, with the place of every value."""

from vlmc.spec.document import SCHEMA_VERSION, ModelSpec
from vlmc.spec.loader import Draft, load
from vlmc.spec.source import SourceMap

__all__ = ["SCHEMA_VERSION", "Draft", "ModelSpec", "SourceMap", "load"]
