"""Functions of PyTorch whose annotations leave types open, named once."""

from __future__ import annotations

from typing import Any

import torch.distributed
import torch.distributed.checkpoint
import torch.distributed.pipelining.stage
import torch.utils.checkpoint

DISTRIBUTED: Any = torch.distributed
STORAGE: Any = torch.distributed.checkpoint
PIPELINING: Any = torch.distributed.pipelining.stage
RECOMPUTATION: Any = torch.utils.checkpoint
