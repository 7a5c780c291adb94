"""The one list of components. Adding a component is its folder and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from vlmc.components.adapter.identity.spec import IdentityAdapter
from vlmc.components.adapter.mlp.spec import LinearAdapter, MLPAdapter
from vlmc.components.adapter.perceiver_resampler.spec import PerceiverResampler
from vlmc.components.adapter.qformer.spec import QFormer
from vlmc.components.contract import ComponentSpec, EncoderSpec, FusionSpec, LanguageSpec
from vlmc.components.encoder.nfnet.spec import NFNet
from vlmc.components.encoder.regions.spec import Regions
from vlmc.components.encoder.vit.spec import ViT
from vlmc.components.fusion.gated_cross_attention.spec import GatedCrossAttention
from vlmc.components.fusion.placeholder.spec import Placeholder
from vlmc.components.fusion.prefix.spec import Prefix, QueryPrefix
from vlmc.components.fusion.single_stream.spec import SingleStream
from vlmc.components.head.classify.spec import Classify
from vlmc.components.head.lm.spec import LMHead
from vlmc.components.head.masked_lm.spec import MaskedLM
from vlmc.components.language.decoder.spec import Decoder
from vlmc.components.language.encoder.spec import TextEncoder
from vlmc.components.language.encoder_decoder.spec import EncoderDecoder
from vlmc.ir import Role


@dataclass(frozen=True, slots=True)
class Component:
    """A kind of a role: its type, and where its body is (imported only when it is built)."""

    role: Role
    spec: type[ComponentSpec]
    module: str

    @property
    def kind(self) -> str:
        """The name that a spec gives it."""
        return self.spec.model_fields["kind"].default


CATALOG: tuple[Component, ...] = (
    Component("encoder", ViT, "encoder.vit.module:ViT"),
    Component("encoder", NFNet, "encoder.nfnet.module:NFNet"),
    Component("encoder", Regions, "encoder.regions.module:Regions"),
    Component("adapter", IdentityAdapter, "adapter.identity.module:IdentityAdapter"),
    Component("adapter", LinearAdapter, "adapter.mlp.module:MLPAdapter"),
    Component("adapter", MLPAdapter, "adapter.mlp.module:MLPAdapter"),
    Component("adapter", QFormer, "adapter.qformer.module:QFormer"),
    Component(
        "adapter", PerceiverResampler, "adapter.perceiver_resampler.module:PerceiverResampler"
    ),
    Component("language", Decoder, "language.decoder.module:Decoder"),
    Component("language", EncoderDecoder, "language.encoder_decoder.module:EncoderDecoder"),
    Component("language", TextEncoder, "language.encoder.module:TextEncoder"),
    Component("fusion", Placeholder, "fusion.placeholder.module:Placeholder"),
    Component("fusion", Prefix, "fusion.prefix.module:Prefix"),
    Component("fusion", QueryPrefix, "fusion.prefix.module:Prefix"),
    Component(
        "fusion",
        GatedCrossAttention,
        "fusion.gated_cross_attention.module:GatedCrossAttention",
    ),
    Component("fusion", SingleStream, "fusion.single_stream.module:SingleStream"),
    Component("head", LMHead, "head.lm.module:LMHead"),
    Component("head", MaskedLM, "head.masked_lm.module:MaskedLM"),
    Component("head", Classify, "head.classify.module:Classify"),
)


def joining(
    encoder: EncoderSpec | None, language: LanguageSpec | None, among: Iterable[str] | None = None
) -> list[str]:
    """The kinds of fusion that take what `encoder` reads and join `language`; a neighbour that is
    None is no obstacle."""
    valid = kinds("fusion")
    types = {
        kind: cast("type[FusionSpec]", valid[kind].spec)
        for kind in (valid if among is None else among)
    }
    return [
        kind
        for kind, fusion in types.items()
        if (language is None or language.architecture in fusion.architectures)
        and (encoder is None or encoder.input_name() in fusion.inputs)
    ]


def kinds(role: Role) -> dict[str, Component]:
    """The components of a role by kind, in the catalog's order."""
    return {entry.kind: entry for entry in CATALOG if entry.role == role}
