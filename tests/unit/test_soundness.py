"""What validates builds and runs as predicted; what is rejected breaks the rule that it is told of.

make soundness      # 20,000 designs; CI draws 1,000
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from torch import nn

from tests.strategies import Document, documents
from tests.violations import VIOLATED, visual_tokens
from vlmc.builder.model import instantiate
from vlmc.diagnostics import Severity
from vlmc.ir import Arch
from vlmc.resolver import check, flow, resolve
from vlmc.spec.loader import draft
from vlmc.spec.reader import parse

EXAMPLES = int(os.environ.get("VLMC_SOUNDNESS_EXAMPLES", "1000"))
OUTCOMES: Counter[str] = Counter()


def inputs(arch: Arch) -> dict[str, torch.Tensor]:
    """Two prompts that use the whole image budget, in the ecosystem's names."""
    encoder, fusion, language = arch.node("encoder"), arch.node("fusion"), arch.node("language")
    batch, images, text = 2, arch.tokens.images, 5
    vocabulary = int(language.arguments["vocabulary"])  # type: ignore[arg-type]
    ids = torch.arange(text).repeat(batch, 1) % max(1, vocabulary - 1)
    given: dict[str, torch.Tensor] = {}
    port = encoder.inputs[0]
    shape = [d for d in port.type.dims if isinstance(d, int)]
    if fusion.kind in ("placeholder",):
        token = torch.tensor(fusion.arguments["image_token"])
        places = token.expand(batch, images * arch.tokens.in_sequence)
        ids = torch.cat((places, ids), dim=1)
    if fusion.kind == "gated_cross_attention":
        token = torch.tensor(fusion.arguments["image_token"])
        ids = torch.cat((token.expand(batch, images), ids), dim=1)
        if images:
            given[port.name] = torch.randn(batch, images, *shape)
    elif images:
        given[port.name] = torch.randn(batch * images, *shape)
    if language.kind == "encoder_decoder":
        given["decoder_input_ids"] = torch.zeros(batch, 3, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}


def runs(arch: Arch, model: nn.Module) -> None:
    given = inputs(arch)
    with torch.no_grad():
        logits = model(**given).logits
    head = arch.node("head")
    assert logits.shape[-1] == head.outputs[0].type.dims[-1]
    assert logits.shape[0] == 2
    if logits.ndim == 3:
        length = given["input_ids"].shape[1]
        if "decoder_input_ids" in given:
            length = 3
        elif arch.node("fusion").kind in ("prefix", "query_prefix", "single_stream"):
            length += arch.tokens.images * arch.tokens.in_sequence
        assert logits.shape[1] == length
    assert torch.isfinite(logits).all()


@given(document=documents())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="VLMC_SOUNDNESS_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_designs_are_what_the_validator_says(document: Document) -> None:
    text = yaml.safe_dump(document, sort_keys=False)
    result = draft(parse(text, "drawn.yaml"), "drawn.yaml", default_name="drawn")
    found = result.diagnostics(check(flow(result.sections)))
    errors = [d for d in found if d.severity == Severity.ERROR]
    if errors:
        for diagnostic in errors:
            OUTCOMES[diagnostic.code] += 1
            assert diagnostic.code in VIOLATED, diagnostic
            assert VIOLATED[diagnostic.code](document, diagnostic), (diagnostic, text)
        return
    OUTCOMES["sound"] += 1
    spec = result.spec()
    arch = resolve(spec)
    assert arch.tokens.per_image == visual_tokens(document)
    # instantiate compares the parameters of every part, by child, with the prediction.
    model = instantiate(arch)
    assert sum(p.numel() for p in model.parameters()) == arch.parameters
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == arch.trainable_parameters
    twin = resolve(spec, mini=True)
    runs(twin, instantiate(twin, device="cpu"))


@pytest.fixture(autouse=True, scope="module")
def _enough_of_each() -> Iterator[None]:
    """The draw must reach both outcomes, and most rules: an empty draw proves nothing."""
    yield
    total = sum(OUTCOMES.values())
    if total >= 500:
        assert OUTCOMES["sound"] >= 0.15 * EXAMPLES, OUTCOMES
        assert len(OUTCOMES) >= 15, OUTCOMES
