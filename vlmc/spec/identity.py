"""What makes two specs one design."""

from __future__ import annotations

import hashlib
import json

from vlmc.spec.document import PARTS, ModelSpec


def fingerprint(spec: ModelSpec) -> str:
    """sha256 of what a model is made of: its parts with presets and defaults filled in. Its name,
    target, token budget and training are no part of it, nor where checkpoints lie."""
    parts = {
        part: getattr(spec, part).model_dump(mode="json", exclude={"weights"}) for part in PARTS
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
