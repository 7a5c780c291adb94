"""The one list of components. Adding a component is its folder and one line here."""

from __future__ import annotations

from dataclasses import dataclass

from vlmc.components.adapter.identity.spec import IdentityAdapter
from vlmc.components.adapter.mlp.spec import LinearAdapter, MLPAdapter
from vlmc.components.contract import ComponentSpec
from vlmc.components.encoder.vit.spec import ViT
from vlmc.components.fusion.placeholder.spec import Placeholder
from vlmc.components.head.lm.spec import LMHead
from vlmc.components.language.decoder.spec import Decoder
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
    Component("adapter", IdentityAdapter, "adapter.identity.module:IdentityAdapter"),
    Component("adapter", LinearAdapter, "adapter.mlp.module:MLPAdapter"),
    Component("adapter", MLPAdapter, "adapter.mlp.module:MLPAdapter"),
    Component("language", Decoder, "language.decoder.module:Decoder"),
    Component("fusion", Placeholder, "fusion.placeholder.module:Placeholder"),
    Component("head", LMHead, "head.lm.module:LMHead"),
)


def kinds(role: Role) -> dict[str, Component]:
    """The components of a role by kind, in the catalog's order."""
    return {entry.kind: entry for entry in CATALOG if entry.role == role}
