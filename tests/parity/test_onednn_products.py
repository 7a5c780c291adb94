"""Products of fp32 matrices by oneDNN: where, which, and with what result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlmc.emit.torch_graphs import onednn
from vlmc.emit.torch_graphs.onednn import onednn_is_faster, use_onednn


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.second = nn.Linear(40, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [("AuthenticAMD", True), ("GenuineIntel", False), ("HygonGenuine", False)],
)
def test_by_the_maker_of_the_cpu(
    vendor: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id\t: {vendor}\n")
    assert onednn_is_faster(tmp_path / "cpuinfo") is expected
    monkeypatch.setattr(onednn.platform, "processor", lambda: f"AMD64 Family 25, {vendor}")
    assert onednn_is_faster(tmp_path / "absent") is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not onednn_is_faster(tmp_path / "cpuinfo")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, 2), (torch.bfloat16, 0)])
def test_products_of_fp32_and_no_others(dtype: torch.dtype, expected: int) -> None:
    model = Two().to(dtype).requires_grad_(False)
    x = torch.randn(3, 5, 24, dtype=dtype)
    axes: Any = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    module: Any = torch.export.export(model, (x,), dynamic_shapes=(axes,)).module()
    assert use_onednn(module.graph.nodes) == expected
    module.recompile()
    for given in (x, x[:1], x[:, :1]):
        torch.testing.assert_close(module(given), model(given))
