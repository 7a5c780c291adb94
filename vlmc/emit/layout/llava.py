"""What a LLaVA checkpoint says of itself, for a design of ours.

Keys and their meaning: `LlavaConfig`, `CLIPVisionConfig`, `LlamaConfig`, `OPTConfig` and
`CLIPImageProcessor` of transformers, and what transformers.js reads of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmc.ir import Arch
from vlmc.ir.arch import Argument
from vlmc.runtime.processor import ImageProcessor

Json = dict[str, Any]


def model_config(arch: Arch, words: Mapping[str, Any]) -> Json:
    """config.json. `words` are the ids of special tokens (`bos_token_id`, ...)."""
    encoder, adapter = arch.node("encoder").arguments, arch.node("adapter").arguments
    language = arch.node("language").arguments
    layers, states = encoder["feature_layers"], _number(encoder["layers"]) + 1
    assert isinstance(layers, tuple)
    chosen = [int(layer) - states for layer in layers]
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": arch.node("fusion").arguments["image_token"],
        "image_seq_length": arch.tokens.per_image,
        "vision_feature_layer": chosen[0] if len(chosen) == 1 else chosen,
        "vision_feature_select_strategy": "default" if encoder["drop_class_token"] else "full",
        "projector_hidden_act": _activation(adapter),
        "multimodal_projector_bias": adapter.get("bias", True),
        "tie_word_embeddings": arch.node("head").arguments["tied"],
        "vision_config": _vision(encoder),
        "text_config": {**_text(language), **words},
        **words,
    }


def image_config(processor: ImageProcessor) -> Json:
    """preprocessor_config.json."""
    edge, size = processor.shortest_edge, processor.size
    return {
        "processor_class": "LlavaProcessor",
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": _extents(size) if size else {"shortest_edge": edge},
        "resample": int(processor.resample),
        "do_center_crop": processor.crop is not None,
        **({"crop_size": _extents(processor.crop)} if processor.crop else {}),
        "do_rescale": processor.factor != 1.0,
        "rescale_factor": processor.factor,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }


def processor_config(arch: Arch, image_word: str) -> Json:
    """processor_config.json: how many placeholders a client puts for one image.

    transformers takes one off under the strategy `default`, transformers.js never does: both count
    the same under `full`.
    """
    encoder = arch.node("encoder").arguments
    patch = _number(encoder["patch_size"])
    grid = (_number(encoder["image_size"]) // patch) ** 2
    return {
        "processor_class": "LlavaProcessor",
        "image_token": image_word,
        "patch_size": patch,
        "num_additional_image_tokens": arch.tokens.per_image - grid,
        "vision_feature_select_strategy": "full",
    }


_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "relu_squared": "relu2"}
"""Our names of nonlinearities in transformers' words, where they differ."""


def _vision(encoder: Mapping[str, Argument]) -> Json:
    return {
        "model_type": "clip_vision_model" if encoder["class_token"] else "siglip_vision_model",
        "image_size": encoder["image_size"],
        "patch_size": encoder["patch_size"],
        "hidden_size": encoder["width"],
        "projection_dim": encoder["width"],
        "intermediate_size": encoder["hidden"],
        "num_hidden_layers": encoder["layers"],
        "num_attention_heads": encoder["heads"],
        "hidden_act": _activation(encoder),
        "layer_norm_eps": encoder["norm_eps"],
    }


def _text(language: Mapping[str, Argument]) -> Json:
    """The language model: as OPT where positions are learned, else as Llama. Clients take extents
    from it; what it computes is in the graph."""
    vocabulary = _number(language["vocabulary"]) + _number(language["added_vocabulary"])
    shared: Json = {
        "vocab_size": vocabulary,
        "hidden_size": language["width"],
        "num_hidden_layers": language["layers"],
        "num_attention_heads": language["heads"],
    }
    rows = _number(language["position_rows"]) - _number(language["position_offset"])
    length = {"max_position_embeddings": rows} if rows > 0 else {}
    if language["positions"] == "learned":
        return {
            "model_type": "opt",
            **shared,
            **length,
            "ffn_dim": language["hidden"],
            "word_embed_proj_dim": language["width"],
            "activation_function": _activation(language),
        }
    return {
        "model_type": "llama",
        **shared,
        **length,
        "num_key_value_heads": language["kv_heads"],
        "head_dim": language["head_dim"],
        "intermediate_size": language["hidden"],
        "hidden_act": _activation(language),
        "rms_norm_eps": language["norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": language["rotary_base"]},
        "attention_bias": language["qkv_bias"],
        "mlp_bias": language["mlp_bias"],
    }


def _activation(arguments: Mapping[str, Argument]) -> str:
    ours = str(arguments.get("activation", "gelu"))
    return _ACTIVATIONS.get(ours, ours)


def _extents(size: tuple[int, int]) -> Json:
    return {"height": size[0], "width": size[1]}


def _number(value: Argument) -> int:
    assert isinstance(value, int)
    return value
