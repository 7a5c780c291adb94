"""Pieces of the executor that newer releases of torch would do without, older ones not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import _backward

from vlmc.components.shared.block import TransformerBlock
from vlmc.runtime.parallel import split as splitting
from vlmc.runtime.parallel.put_off import apart, taken_in, together
from vlmc.runtime.parallel.split import split
from vlmc.runtime.parallel.stage import Through, save_less
from vlmc.runtime.parallel.untyped import RECOMPUTATION
from vlmc.runtime.parallel.words import context_of

handed_on: Any = Through.apply


def test_what_a_stage_received_gets_a_gradient_though_nothing_read_it() -> None:
    received = torch.randn(2, 3, requires_grad=True)
    read = torch.randn(2, 3, requires_grad=True)
    sent: tuple[Tensor, ...] = handed_on(1, read * 2, received, read)
    assert torch.equal(sent[0], read * 2)
    sent[0].sum().backward()
    assert received.grad is not None
    assert torch.equal(received.grad, torch.zeros(2, 3))
    assert read.grad is not None
    assert torch.equal(read.grad, torch.full((2, 3), 2.0))


def test_what_a_frozen_stage_sends_asks_for_a_gradient() -> None:
    anchor = torch.zeros((), requires_grad=True)
    (sent,) = handed_on(1, torch.ones(3), anchor)
    assert sent.requires_grad


def test_layers_of_a_decoder_save_nothing_for_each_row() -> None:
    parts: Any = SimpleNamespace(argument=lambda _, name: {"positions": "transformer_xl"}[name])
    where = context_of(parts, None, {"input_ids": torch.ones(2, 4)}, torch.float32).places
    assert where.positions.tolist() == where.keys.tolist() == [[0, 1, 2, 3]]
    assert where.mask is None
    assert where.causal


class Reader(nn.Module):
    """A decoder's block, which counts how often each of its attentions runs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross, self.ran = nn.Linear(2, 2), nn.Linear(2, 2), [0, 0]
        for place, module in enumerate((self.attention, self.cross)):
            module.forward = self.counted(place, module.forward)  # type: ignore[method-assign]

    def counted(self, place: int, forward: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            self.ran[place] += 1
            return forward(x)

        return run

    def forward(self, x: Tensor) -> Tensor:
        return self.cross(self.attention(x))


def test_selective_checkpointing_computes_all_attention_of_a_block_again() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Reader()])})
    steps = [SimpleNamespace(block="layers.0", look=None)]
    stage: Any = SimpleNamespace(model=model, cut=SimpleNamespace(steps=steps))
    save_less(stage, {"layers.*": "selective"})
    block: Any = model.get_submodule("layers.0")
    block(torch.ones(1, 2)).sum().backward()
    assert block.ran == [2, 2]


class Mlp(nn.Module):
    """What tensor parallelism splits."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.activation = nn.GELU()


class Two:
    """A mesh, as far as splitting asks for it."""

    def size(self) -> int:
        return 2


def test_frozen_parameters_stay_frozen_where_splitting_makes_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pytorch PR#171709: new parameters ask for gradients, whatever those did that they follow."""

    def renewed(model: nn.Module, mesh: object, plan: dict[str, Any], **_: Any) -> None:
        for path in plan:
            linear = model.get_submodule(path)
            for name, old in list(linear.named_parameters()):
                setattr(linear, name, nn.Parameter(old.detach()))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"language": Mlp(), "adapter": Mlp()})

    monkeypatch.setattr(splitting, "parallelize_module", renewed)
    stage: Any = Whole()
    stage.model["language"].requires_grad_(False)
    mesh: Any = Two()
    split(stage, mesh, mesh, sequences=False)
    for name, parameter in stage.model.named_parameters():
        assert parameter.requires_grad == name.startswith("adapter."), name


def test_gradients_put_off_have_a_block_computed_again_once() -> None:
    """PyTorch by itself would do so for each of its groups of weights."""
    torch.manual_seed(0)
    blocks = [_narrow(), _narrow()]
    x = torch.randn(2, 5, 16, requires_grad=True)
    wanted = torch.autograd.grad(
        blocks[1](blocks[0](x)).square().sum(), [w for b in blocks for w in b.parameters()]
    )
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.attention.register_forward_pre_hook(lambda *_, n=number: ran.append(n))
    hidden: Any = x
    for block in blocks:
        hidden = RECOMPUTATION.checkpoint(block, hidden, use_reentrant=False)
    weights = [w for block in blocks for w in block.parameters()]
    _, groups = _backward.stage_backward_input([hidden.square().sum()], None, [x], iter(weights))
    ran.clear()
    groups = together(apart(groups), blocks)
    _backward.stage_backward_weight(iter(weights), groups, retain_graph=True)
    assert sorted(ran) == [0, 1]
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_tied_weight_that_was_put_off_leads_through_nothing_again() -> None:
    """PyTorch by itself would go from the head back to the words through all that lies between."""
    torch.manual_seed(0)
    table, block, words = nn.Embedding(7, 16), _narrow(), torch.tensor([[1, 2, 2, 6]])
    x = torch.randn(1, 4, 16, requires_grad=True)
    between = (x + table(words)) * 2
    loss = (block(between) @ table.weight.T).square().sum()
    weights = [table.weight, *block.parameters()]
    wanted = torch.autograd.grad(loss, weights, retain_graph=True)
    ran: list[int] = []
    between.register_hook(lambda _: ran.append(1))
    _, groups = _backward.stage_backward_input([loss], None, [x], iter(weights))
    assert ran.pop() == 1
    left = [group for group in apart(groups) if not taken_in(group, [])]
    _backward.stage_backward_weight(iter(weights), left, retain_graph=True)
    assert not ran
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_weight_that_blocks_read_alike_is_counted_once_for_each() -> None:
    torch.manual_seed(0)
    table, blocks = nn.Parameter(torch.randn(4, 16)), [_narrow(), _narrow()]
    x = torch.randn(1, 4, 16, requires_grad=True)
    read = table * 2
    loss = blocks[1](blocks[0](x + read) + read).square().sum()
    (wanted,) = torch.autograd.grad(loss, [table], retain_graph=True)
    _, groups = _backward.stage_backward_input([loss], None, [x], iter([table]))
    left = [group for group in apart(groups) if not taken_in(group, [])]
    _backward.stage_backward_weight(iter([table]), left, retain_graph=True)
    torch.testing.assert_close(table.grad, wanted)


def _narrow() -> TransformerBlock:
    return TransformerBlock(
        width=16, heads=2, kv_heads=2, head_dim=8, hidden=32, norm="layer", norm_eps=1e-5,
        pre_norm=True, activation="gelu", gated=False, qkv_bias=True, output_bias=True,
        mlp_bias=True,
    )  # fmt: skip
