"""Every artifact executed by its real runtime and compared with eager fp32."""

from vlmc.emit.verify.judge import Unsound, verifier, verify

__all__ = ["Unsound", "verifier", "verify"]
