"""Is the rule behind a code really broken? Second opinions, by other arithmetic than the rules'.

Each function is given the document as drawn (every field written out or at its default) and the
diagnostic, and recomputes from the document alone whether the complaint is justified.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmc.diagnostics import Diagnostic

Document = dict[str, Any]

FUSES_AT = {
    "placeholder": "late",
    "prefix": "late",
    "query_prefix": "mid",
    "gated_cross_attention": "mid",
    "single_stream": "early",
}
JOINS = {
    "placeholder": ("decoder",),
    "prefix": ("decoder", "encoder_decoder"),
    "query_prefix": ("decoder", "encoder_decoder"),
    "gated_cross_attention": ("decoder",),
    "single_stream": ("encoder",),
}
READS = {"lm": ("decoder", "encoder_decoder"), "masked_lm": ("encoder",), "classify": ("encoder",)}
MEMORY_GB = {"a100-80gb": 80, "t4": 16, "h100-sxm": 80}
FORMATS = {
    "a100-80gb": {"fp32", "tf32", "bf16", "fp16", "int8"},
    "t4": {"fp32", "fp16", "int8", "int4"},
    "h100-sxm": {"fp32", "tf32", "bf16", "fp16", "fp8", "int8"},
}


def tokens_per_frame(encoder: Document) -> int:
    if encoder["kind"] == "regions":
        return encoder["count"]
    if encoder["kind"] == "nfnet":
        return (encoder["image_size"] // 32) ** 2
    kept = encoder["cls"] and not encoder["features"]["drop_cls"]
    return (encoder["image_size"] // encoder["patch_size"]) ** 2 + kept


def frames(encoder: Document) -> int:
    return max(encoder.get("frames", {"train": 1}).values())


def visual_tokens(document: Document) -> int:
    adapter = document["adapter"]
    if adapter["kind"] in ("perceiver_resampler", "qformer"):
        return adapter["queries"]
    return tokens_per_frame(document["encoder"]) * frames(document["encoder"])


def heads_do_not_divide(document: Document, found: Diagnostic) -> bool:
    part = document[found.path[0]]
    return part["width"] % part["heads"] != 0


def key_value_heads_are_wrong(document: Document, found: Diagnostic) -> bool:
    part = document["language"]
    grouped = part.get("kv_heads", part["heads"])
    relative = part["positions"]["kind"] == "transformer_xl"
    return part["heads"] % grouped != 0 or (relative and grouped != part["heads"])


def tensor_degree_does_not_divide(document: Document, found: Diagnostic) -> bool:
    degree = document["target"]["parallel"]["tensor"]
    counts = [document["language"]["heads"]]
    counts.append(document["encoder"].get("heads", degree))
    return any(count % degree for count in counts)


def tensor_degree_does_not_divide_kv(document: Document, found: Diagnostic) -> bool:
    return document["language"]["kv_heads"] % document["target"]["parallel"]["tensor"] != 0


def patches_do_not_divide(document: Document, found: Diagnostic) -> bool:
    encoder = document["encoder"]
    return encoder["image_size"] % encoder.get("patch_size", 32) != 0


def no_such_hidden_state(document: Document, found: Diagnostic) -> bool:
    encoder = document["encoder"]
    layer = encoder["features"]["layer"]
    states = range(-encoder["layers"] - 1, encoder["layers"] + 1)
    return any(index not in states for index in ([layer] if isinstance(layer, int) else layer))


def features_need_what_is_not_there(document: Document, found: Diagnostic) -> bool:
    encoder = document["encoder"]
    chosen = encoder["features"]
    return (chosen["drop_cls"] and not encoder["cls"]) or (
        chosen["norm"] and not encoder["post_norm"]
    )


def positions_are_impossible(document: Document, found: Diagnostic) -> bool:
    part = document["language"]
    kind = part["positions"]["kind"]
    per_head = part.get("head_dim", part["width"] // part["heads"])
    return (
        (kind == "rotary" and per_head % 2 == 1)
        or (kind == "transformer_xl" and part["width"] % 2 == 1)
        or (kind == "learned" and "context" not in part)
    )


def degrees_exceed_devices(document: Document, found: Diagnostic) -> bool:
    target = document["target"]
    return target["count"] % target["parallel"]["tensor"] != 0


def placeholders_differ(document: Document, found: Diagnostic) -> bool:
    return document["fusion"]["placeholders"] != visual_tokens(document)


def too_many_queries(document: Document, found: Diagnostic) -> bool:
    read = tokens_per_frame(document["encoder"]) * frames(document["encoder"])
    return document["adapter"]["queries"] > read


def adapter_is_too_deep(document: Document, found: Diagnostic) -> bool:
    return document["adapter"]["layers"] > document["language"]["layers"]


def interval_exceeds_depth(document: Document, found: Diagnostic) -> bool:
    if found.path[0] == "adapter":
        return document["adapter"]["cross_attention_every"] > document["adapter"]["layers"]
    return document["fusion"]["every"] > document["language"]["layers"]


def regions_meet_no_taker(document: Document, found: Diagnostic) -> bool:
    given = document["encoder"]["kind"] == "regions"
    return given and document["fusion"]["kind"] != "single_stream"


def point_is_another(document: Document, found: Diagnostic) -> bool:
    return document["fusion"]["point"] != FUSES_AT[document["fusion"]["kind"]]


def fusion_cannot_join(document: Document, found: Diagnostic) -> bool:
    return document["language"]["kind"] not in JOINS[document["fusion"]["kind"]]


def head_cannot_read(document: Document, found: Diagnostic) -> bool:
    return document["language"]["kind"] not in READS[document["head"]["kind"]]


def widths_differ(document: Document, found: Diagnostic) -> bool:
    adapter, language = document["adapter"], document["language"]
    if adapter["kind"] in ("mlp", "linear", "qformer"):
        return False
    if adapter["kind"] == "perceiver_resampler":
        return adapter.get("width", 1536) != language["width"]
    encoder = document["encoder"]
    width = encoder.get("width", 0)
    if encoder["kind"] == "nfnet":
        width = max(1, int(encoder["final_ratio"] * encoder["widths"][-1]))
    if encoder["kind"] == "vit":
        layer = encoder["features"]["layer"]
        width *= 1 if isinstance(layer, int) else len(layer)
    return width != language["width"]


def budget_exceeds_context(document: Document, found: Diagnostic) -> bool:
    budget = document["token_budget"]
    outside = document["fusion"]["kind"] in ("gated_cross_attention", "single_stream")
    each = 0 if outside else visual_tokens(document)
    if document["fusion"]["kind"] == "gated_cross_attention" and (
        budget["text"] <= budget["images"]
    ):
        return True
    return budget["text"] + budget["images"] * each > document["language"]["context"]


def workload_exceeds_budget(document: Document, found: Diagnostic) -> bool:
    workload = document["target"]["workload"]
    generated = workload["generate"] if workload["mode"] == "serve" else 0
    return workload["prompt"] + generated > document["token_budget"]["text"]


def has_parameters(document: Document, part: str) -> bool:
    if part == "fusion":
        kind = document["fusion"]["kind"]
        if kind != "gated_cross_attention":
            return kind == "single_stream"
        return True
    return document[part]["kind"] not in ("regions", "identity")


def stage_trains_nothing_or_what_is_frozen(document: Document, found: Diagnostic) -> bool:
    trained = document["training"]["stages"][0]["train"]
    return any(document[part].get("frozen", False) for part in trained) or not any(
        has_parameters(document, part) for part in trained
    )


def encoder_decoder_is_impossible(document: Document, found: Diagnostic) -> bool:
    part = document["language"]
    buckets, most = part["positions"]["buckets"], part["positions"]["max_distance"]
    return part["decoder_layers"] == 0 or buckets % 4 != 0 or most <= buckets // 2


def token_is_unknown(document: Document, found: Diagnostic) -> bool:
    return document["language"]["start_token"] >= document["language"]["vocabulary"]


def stage_is_too_narrow(document: Document, found: Diagnostic) -> bool:
    encoder = document["encoder"]
    inner = [int(width * encoder["bottleneck_ratio"]) for width in encoder["widths"]]
    return min(inner) < encoder["group_size"]


def nothing_is_free(document: Document, found: Diagnostic) -> bool:
    free = [
        name
        for name in ("encoder", "adapter", "fusion", "language")
        if not document[name].get("frozen", False) and has_parameters(document, name)
    ]
    language = document["language"]
    usual = "masked_lm" if language["kind"] == "encoder" else "lm"
    head = document.get("head", {"kind": usual})
    tied = head["kind"] == "lm" and language.get("tied_head", False)
    free_head = not tied and not head.get("frozen", False)
    return document["target"]["workload"]["mode"] == "train" and not (free or free_head)


def format_is_unsupported(document: Document, found: Diagnostic) -> bool:
    target = document["target"]
    serving = target["workload"]["mode"] == "serve"
    stored = serving and target["precision"] in ("int4", "int8", "fp8")
    return target["precision"] not in FORMATS[target["hardware"]] and not stored


def format_is_not_trained_in(document: Document, found: Diagnostic) -> bool:
    target = document["target"]
    return target["workload"]["mode"] == "train" and target["precision"] in ("fp16", "int8")


def memory_is_short(document: Document, found: Diagnostic) -> bool:
    """A batch of 2^30 sequences needs more than any of these machines has; nothing else does."""
    target = document["target"]
    channels = document["language"]["width"]
    most = MEMORY_GB[target["hardware"]] * 1e9 * target["count"]
    return target["workload"]["batch"] * channels * 2 > most or target["workload"]["batch"] > 10**6


VIOLATED: dict[str, Callable[[Document, Diagnostic], bool]] = {
    "VLMC012": format_is_not_trained_in,
    "VLMC101": heads_do_not_divide,
    "VLMC102": key_value_heads_are_wrong,
    "VLMC103": tensor_degree_does_not_divide,
    "VLMC104": tensor_degree_does_not_divide_kv,
    "VLMC105": patches_do_not_divide,
    "VLMC106": no_such_hidden_state,
    "VLMC107": features_need_what_is_not_there,
    "VLMC108": positions_are_impossible,
    "VLMC109": degrees_exceed_devices,
    "VLMC110": placeholders_differ,
    "VLMC111": token_is_unknown,
    "VLMC112": too_many_queries,
    "VLMC113": adapter_is_too_deep,
    "VLMC114": interval_exceeds_depth,
    "VLMC115": encoder_decoder_is_impossible,
    "VLMC117": stage_is_too_narrow,
    "VLMC116": regions_meet_no_taker,
    "VLMC120": point_is_another,
    "VLMC121": fusion_cannot_join,
    "VLMC122": head_cannot_read,
    "VLMC123": widths_differ,
    "VLMC130": budget_exceeds_context,
    "VLMC131": workload_exceeds_budget,
    "VLMC140": nothing_is_free,
    "VLMC141": stage_trains_nothing_or_what_is_frozen,
    "VLMC151": format_is_unsupported,
    "VLMC152": memory_is_short,
}
