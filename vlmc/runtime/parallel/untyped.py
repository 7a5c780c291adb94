"""Functions of PyTorch whose annotations leave types open, named once."""

from __future__ import annotations

from typing import Any

import torch.distributed
import torch.distributed.checkpoint
import torch.utils.checkpoint

DISTRIBUTED: Any = torch.distributed
STORAGE: Any = torch.distributed.checkpoint
RECOMPUTATION: Any = torch.utils.checkpoint
