"""Random designs: documents over every component and size, some of them wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Document = dict[str, Any]

small = st.integers(1, 4)
activation = st.sampled_from(("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared"))
norm = st.sampled_from((None, "layer", "rms"))
epsilon = st.sampled_from((1e-12, 1e-6, 1e-5))


@st.composite
def heads_and_width(draw: st.DrawFn, *, even: bool = False) -> tuple[int, int]:
    """Heads and a width that they divide, nine times out of ten."""
    heads = draw(small)
    width = heads * draw(st.sampled_from((4, 8, 16) if even else (2, 3, 8, 16)))
    return heads, width + (draw(st.integers(0, 9)) == 0)


@st.composite
def vits(draw: st.DrawFn) -> Document:
    heads, width = draw(heads_and_width())
    patch = draw(st.sampled_from((2, 4, 7)))
    layers = draw(small)
    cls = draw(st.booleans())
    layer = st.integers(-layers - 1, layers)
    if draw(st.integers(0, 9)) == 0:
        layer = st.integers(-layers - 3, layers + 2)
    return {
        "kind": "vit",
        "image_size": patch * draw(small) + (draw(st.integers(0, 14)) == 0),
        "patch_size": patch,
        "width": width,
        "heads": heads,
        "layers": layers,
        "hidden": draw(st.integers(1, 32)),
        "activation": draw(activation),
        "norm_eps": draw(epsilon),
        "cls": cls,
        "patch_bias": draw(st.booleans()),
        "pre_norm": draw(st.booleans()),
        "post_norm": draw(st.booleans()),
        "features": {
            "layer": draw(st.one_of(layer, st.lists(layer, min_size=1, max_size=3))),
            "drop_cls": draw(st.booleans()) and (cls or draw(st.integers(0, 9)) == 0),
            "norm": draw(st.integers(0, 9)) == 0,
        },
        "frozen": draw(st.booleans()),
    }


@st.composite
def nfnets(draw: st.DrawFn) -> Document:
    group = draw(st.sampled_from((2, 4)))
    return {
        "kind": "nfnet",
        "image_size": draw(st.sampled_from((32, 64, 64, 48))),
        "depths": [draw(st.integers(1, 2)) for _ in range(4)],
        "widths": [group * 2 * draw(st.integers(1, 3)) for _ in range(4)],
        "group_size": group,
        "bottleneck_ratio": draw(st.sampled_from((0.5, 0.5, 1.0, 0.25))),
        "se_ratio": draw(st.sampled_from((0.1, 0.5))),
        "final_ratio": draw(st.sampled_from((0.5, 1.0, 2.0))),
        "activation": draw(st.sampled_from(("gelu", "gelu_tanh", "relu", "silu"))),
        "frozen": draw(st.booleans()),
    }


@st.composite
def regions(draw: st.DrawFn) -> Document:
    return {"kind": "regions", "count": draw(st.integers(1, 9)), "width": draw(st.integers(1, 24))}


@st.composite
def frames(draw: st.DrawFn, encoder: Document) -> Document:
    """The encoder, one time in three with frames of a video."""
    if encoder["kind"] == "regions" or draw(st.integers(0, 2)):
        return encoder
    return {**encoder, "frames": {"train": draw(small), "serve": draw(st.integers(1, 6))}}


@st.composite
def adapters(draw: st.DrawFn) -> Document:
    kind = draw(st.sampled_from(("identity", "linear", "mlp", "perceiver_resampler", "qformer")))
    document: Document = {"kind": kind, "frozen": draw(st.booleans())}
    if kind == "mlp":
        document |= {
            "layers": draw(small),
            "activation": draw(activation),
            "norm": draw(st.sampled_from((None, "layernorm"))),
            "bias": draw(st.booleans()),
        }
    if kind == "perceiver_resampler":
        document |= {
            "queries": draw(st.integers(1, 6)),
            "layers": draw(st.integers(1, 3)),
            "heads": draw(small),
            "head_dim": draw(st.sampled_from((2, 8))),
            "activation": draw(activation),
            "qk_norm": draw(norm),
            "norm_eps": draw(epsilon),
            "final_norm": draw(st.booleans()),
        }
        if draw(st.integers(0, 9)):
            document["width"] = draw(st.integers(2, 24))
    if kind == "qformer":
        heads, width = draw(heads_and_width())
        layers = draw(small)
        document |= {
            "queries": draw(st.integers(1, 12)),
            "layers": layers,
            "width": width,
            "heads": heads,
            "hidden": draw(st.integers(1, 32)),
            "cross_attention_every": draw(st.integers(1, layers + (draw(small) == 1))),
        }
    return document


@st.composite
def decoders(draw: st.DrawFn) -> Document:
    heads, width = draw(heads_and_width(even=True))
    document: Document = {
        "kind": "decoder",
        "width": width,
        "heads": heads,
        "layers": draw(st.integers(1, 6)),
        "hidden": draw(st.integers(1, 32)),
        "vocabulary": draw(st.integers(8, 64)),
        "added_vocabulary": draw(st.integers(0, 3)),
        "norm": draw(st.sampled_from(("rms", "layer"))),
        "norm_eps": draw(epsilon),
        "activation": draw(activation),
        "gated": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tied_head": draw(st.booleans()),
        "frozen": draw(st.booleans()),
    }
    positions = draw(st.sampled_from(("rotary", "learned", "transformer_xl")))
    document["positions"] = {"kind": positions}
    if positions == "learned":
        document["positions"]["offset"] = draw(st.integers(0, 2))
    if positions == "learned" or draw(st.booleans()):
        document["context"] = draw(st.sampled_from((16, 512, 4096)))
    if draw(st.integers(0, 2)) == 0:
        document["kv_heads"] = draw(st.integers(1, heads))
    if draw(st.integers(0, 3)) == 0:
        document["head_dim"] = draw(st.sampled_from((4, 6, 8)))
    return document


@st.composite
def encoder_decoders(draw: st.DrawFn) -> Document:
    return {
        "kind": "encoder_decoder",
        "width": draw(st.sampled_from((8, 16, 20))),
        "heads": draw(small),
        "head_dim": draw(st.sampled_from((2, 4, 8))),
        "layers": draw(small),
        "decoder_layers": draw(small),
        "hidden": draw(st.integers(1, 32)),
        "vocabulary": draw(st.integers(8, 64)),
        "gated": draw(st.booleans()),
        "activation": draw(activation),
        "positions": {
            "buckets": draw(st.sampled_from((4, 8, 12, 32) if draw(st.integers(0, 9)) else (6,))),
            "max_distance": draw(st.sampled_from((20, 64, 128))),
        },
        "start_token": draw(st.integers(0, 7 + 90 * (draw(st.integers(0, 9)) == 0))),
        "tied_head": draw(st.booleans()),
        "frozen": draw(st.booleans()),
    }


@st.composite
def encoders_of_text(draw: st.DrawFn) -> Document:
    heads, width = draw(heads_and_width())
    return {
        "kind": "encoder",
        "width": width,
        "heads": heads,
        "layers": draw(small),
        "hidden": draw(st.integers(1, 32)),
        "vocabulary": draw(st.integers(8, 64)),
        "context": draw(st.sampled_from((16, 512))),
        "token_types": draw(st.integers(1, 3)),
        "activation": draw(activation),
        "norm_eps": draw(epsilon),
        "tied_head": draw(st.booleans()),
        "frozen": draw(st.booleans()),
    }


@st.composite
def fusions(draw: st.DrawFn, language: Document) -> Document:
    kind = draw(
        st.sampled_from(
            ("placeholder", "prefix", "query_prefix", "gated_cross_attention", "single_stream")
            if draw(st.integers(0, 9)) == 0
            else {
                "decoder": ("placeholder", "prefix", "query_prefix", "gated_cross_attention"),
                "encoder_decoder": ("prefix", "query_prefix"),
                "encoder": ("single_stream",),
            }[language["kind"]]
        )
    )
    document: Document = {"kind": kind, "frozen": draw(st.booleans())}
    if draw(st.integers(0, 9)) == 0:
        document["point"] = draw(st.sampled_from(("early", "mid", "late")))
    if kind == "gated_cross_attention":
        document |= {
            "every": draw(st.integers(1, language["layers"] + (draw(small) == 1))),
            "attend": draw(st.sampled_from(("last_image", "all_previous"))),
            "gate_per_channel": draw(st.booleans()),
            "norm": draw(st.sampled_from(("rms", "layer"))),
            "norm_eps": draw(epsilon),
            "activation": draw(activation),
            "gated": draw(st.booleans()),
            "qk_norm": draw(norm),
            "visual_projection": draw(st.booleans()),
        }
        if draw(st.booleans()):
            document |= {"heads": draw(small), "head_dim": draw(small), "hidden": draw(small)}
    if kind == "single_stream" and draw(st.booleans()):
        document["token_types"] = draw(st.integers(2, 4))
    if kind == "placeholder" and draw(st.integers(0, 5)) == 0:
        document["placeholders"] = draw(st.integers(1, 20))
    return document


@st.composite
def heads(draw: st.DrawFn, language: Document) -> Document | None:
    if draw(st.integers(0, 2)):
        return None
    kind = draw(st.sampled_from(("lm", "masked_lm", "classify")))
    if language["kind"] != "encoder" and draw(st.integers(0, 4)):
        kind = "lm"
    document: Document = {"kind": kind, "frozen": draw(st.booleans())}
    if kind == "classify":
        document |= {
            "classes": draw(st.integers(1, 9)),
            "pool": draw(st.sampled_from(("last_word", "first"))),
        }
    if kind == "masked_lm":
        document |= {"activation": draw(activation), "pairs": draw(st.booleans())}
    return document


@st.composite
def targets(draw: st.DrawFn, text: int) -> Document | None:
    """None half the time; now and then a workload, a batch or a degree that is too large."""
    if draw(st.booleans()):
        return None
    prompt = draw(st.integers(1, text + 3 * (draw(st.integers(0, 4)) == 0)))
    document: Document = {
        "hardware": draw(st.sampled_from(("a100-80gb", "t4", "h100-sxm"))),
        "count": draw(st.sampled_from((1, 2, 6))),
        "precision": draw(st.sampled_from(("bf16", "fp16", "fp32", "int8"))),
        "workload": {
            "mode": draw(st.sampled_from(("serve", "train"))),
            "batch": draw(st.sampled_from((1, 2, 4, 8, 2**30))),
            "prompt": prompt,
            "generate": draw(st.integers(0, max(0, text - prompt))),
        },
    }
    if draw(st.integers(0, 3)) == 0:
        document["parallel"] = {"tensor": draw(st.integers(1, 4))}
    return document


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """A whole design."""
    language = draw(st.one_of(decoders(), decoders(), encoder_decoders(), encoders_of_text()))
    sees = regions() if language["kind"] == "encoder" else st.one_of(vits(), vits(), nfnets())
    encoder = draw(sees if draw(st.integers(0, 9)) else st.one_of(vits(), nfnets(), regions()))
    text = draw(st.integers(1, 40))
    document: Document = {
        "encoder": draw(frames(encoder)),
        "adapter": draw(adapters()),
        "fusion": draw(fusions(language)),
        "language": language,
        "token_budget": {"images": draw(st.integers(0, 3)), "text": text},
    }
    if draw(st.integers(0, 2)):
        document["adapter"] = {"kind": draw(st.sampled_from(("linear", "mlp")))}
    head, target = draw(heads(language)), draw(targets(text))
    if head is not None:
        document["head"] = head
    if target is not None:
        document["target"] = target
    if draw(st.integers(0, 9)) == 0:
        for part in ("encoder", "adapter", "fusion", "language"):
            document[part] = {**document[part], "frozen": True}
    if draw(st.integers(0, 9)) == 0:
        parts = st.sampled_from(("encoder", "adapter", "fusion", "language"))
        trained = draw(st.lists(parts, min_size=1, max_size=3, unique=True))
        stage = {"name": "one", "train": trained, "lr": 1e-3}
        document["training"] = {"stages": [stage]}
    return document
