"""One component of a spec: its preset, its kind, and its fields typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.components.catalog import joining, kinds
from vlmc.components.contract import ComponentSpec
from vlmc.diagnostics import Problem
from vlmc.diagnostics.nearest import listing
from vlmc.ir import Role
from vlmc.spec import presets
from vlmc.spec.merge import on_preset, spelled_out
from vlmc.spec.problems import bad_word, not_yet, planned, unknown_key, unknown_name, wrong_type
from vlmc.spec.tree import Mapping, Scalar, Sequence, plain
from vlmc.spec.validate import validate

if TYPE_CHECKING:
    from vlmc.spec.draft import Draft

DEFAULT_KINDS = {"encoder": "vit", "language": "decoder", "adapter": "identity"}
POINTS = ("early", "mid", "late")


def component(role: Role, document: Mapping, result: Draft) -> Mapping | None:
    """Types one component into `result`; returns its tree with the preset's fields filled in."""
    tree = document.entries.get(role)
    if tree is None or (isinstance(tree, Scalar) and tree.value is None):
        tree = Mapping({}, document.keys.get(role, document.span))
        if role in ("encoder", "language"):
            result.problems.append(
                Problem(
                    code="VLMC013",
                    path=(role,),
                    message=f"the spec needs the section `{role}`",
                    expected=f"a preset ({listing('', presets.names(role))}) or fields",
                    got="nothing",
                    help=f"{role}: {presets.names(role)[0]}",
                )
            )
            return None
    if isinstance(tree, Scalar):
        tree = _one_word(role, tree, result)
    if isinstance(tree, Sequence):
        result.problems.append(wrong_type((role,), "a mapping of fields, or one word", plain(tree)))
        return None
    if tree is None or not _preset_is_known(role, tree, result):
        return None
    tree = on_preset(role, tree)
    kind = _kind(role, tree, result)
    if kind is None:
        return tree
    data = plain(tree)
    data.pop("preset", None)
    data["kind"] = kind
    value, problems = validate(kinds(role)[kind].spec, data, (role,))
    result.problems.extend(problems)
    if isinstance(value, ComponentSpec):
        result.sections[role] = value
        known = {problem.path for problem in problems}
        found = (problem.below(role) for problem in value.problems())
        result.problems.extend(problem for problem in found if problem.path not in known)
    return tree


def _one_word(role: Role, tree: Scalar, result: Draft) -> Mapping | None:
    """One word in place of a mapping: a preset, a kind, or a fusion point."""
    known = spelled_out(role, tree)
    if isinstance(known, Mapping):
        return known
    word = tree.value
    if not isinstance(word, str):
        result.problems.append(wrong_type((role,), "a mapping of fields, or one word", word))
        return None
    for group in ("presets", "kinds"):
        about = planned()[group].get(role, {}).get(word)
        if about is not None:
            result.problems.append(not_yet((role,), f"the {role} `{word}`", about))
            return None
    valid = [*presets.names(role), *kinds(role), *(POINTS if role == "fusion" else ())]
    result.problems.append(unknown_name((role,), word, valid))
    return None


def _preset_is_known(role: Role, tree: Mapping, result: Draft) -> bool:
    if "preset" not in tree.entries:
        return True
    word, valid = plain(tree.entries["preset"]), list(presets.names(role))
    path = (role, "preset")
    if not isinstance(word, str):
        result.problems.append(wrong_type(path, "the name of a preset", word))
        return False
    if word in valid:
        kind = presets.kind(role, word)
        own = plain(tree.entries["kind"]) if "kind" in tree.entries else kind
        if own == kind or not isinstance(own, str) or own not in kinds(role):
            return True
        result.problems.append(
            Problem(
                code="VLMC015",
                path=(role, "kind"),
                message=f"the preset `{word}` is a `{kind}`, not a `{own}`",
                expected=kind,
                got=own,
                help=f"kind: {kind}",
            )
        )
        return False
    about = planned()["presets"].get(role, {}).get(word)
    if about is not None:
        result.problems.append(not_yet(path, f"the preset `{word}`", about))
    elif not valid:
        result.problems.append(unknown_key(path, ["kind"]))
    else:
        result.problems.append(unknown_name(path, word, valid))
    return False


def _kind(role: Role, tree: Mapping, result: Draft) -> str | None:
    """The kind of a component: what is written, or what its neighbours make usual."""
    valid = kinds(role)
    if "kind" in tree.entries:
        word, path = plain(tree.entries["kind"]), (role, "kind")
        about = planned()["kinds"].get(role, {}).get(word) if isinstance(word, str) else None
        if isinstance(word, str) and word in valid:
            return word
        if about is not None:
            result.problems.append(not_yet(path, f"the {role} `{word}`", about))
        elif isinstance(word, str):
            result.problems.append(unknown_name(path, word, list(valid)))
        else:
            result.problems.append(wrong_type(path, "the name of a kind", word))
        return None
    if role == "fusion":
        return _usual_fusion(tree, result)
    if role == "head":
        language = result.sections.get("language")
        architecture = "decoder" if language is None else language.architecture
        for kind, entry in valid.items():
            if architecture in getattr(entry.spec, "architectures", ()):
                return kind
    return DEFAULT_KINDS[role]


def _usual_fusion(tree: Mapping, result: Draft) -> str | None:
    """The first kind of fusion at the point that is written, or at any, that joins the language
    model and takes what the encoder reads; the first at the point where none does."""
    point = plain(tree.entries["point"]) if "point" in tree.entries else None
    here = [
        kind
        for kind, entry in kinds("fusion").items()
        if point is None or getattr(entry.spec, "points", ("",))[0] == point
    ]
    if here:
        encoder, language = result.sections.get("encoder"), result.sections.get("language")
        fitting = joining(encoder, language, here) or joining(None, language, here)
        return fitting[0] if fitting else here[0]
    path = ("fusion", "point")
    if isinstance(point, str):
        result.problems.append(bad_word(path, point, POINTS))
    else:
        result.problems.append(wrong_type(path, " or ".join(POINTS), point))
    return None
