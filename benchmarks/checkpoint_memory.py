"""Prints the peak memory of loading a 9B checkpoint, beside the size of the model.

    python benchmarks/checkpoint_memory.py [--layers N]

Makes a checkpoint of specs/idefics-9b.yaml in the Hugging Face format, in bf16, as a file with
holes: names, shapes and sizes are real, the values are zeros that take no disk. Then loads it in a
process of its own. Needs transformers (a test dependency) and as much memory as the model, 17.9 GB;
fewer layers of the language model make it smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "specs" / "idefics-9b.yaml"

LOAD = """
import resource, sys
import torch, vlmc
scale = 1 if sys.platform == "darwin" else 1024
spec = vlmc.load_spec(sys.argv[1], sys.argv[3:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
built = vlmc.build_model(spec, checkpoint=sys.argv[2], dtype=torch.bfloat16)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
sizes = [p.numel() * p.element_size() for p in built.parameters()]
print(sum(sizes), max(sizes), before, peak)
"""


def checkpoint(folder: Path, layers: int) -> None:
    """Writes config.json and a safetensors file that is all header and hole."""
    import torch
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    config = IdeficsConfig(
        num_hidden_layers=layers,
        additional_vocab_size=2,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        cross_layer_interval=4,
        use_resampler=True,
        rms_norm_eps=1e-6,
        qk_layer_norms=True,
        vision_config={
            "embed_dim": 1280,
            "image_size": 224,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 64,
            "resampler_depth": 6,
            "resampler_n_heads": 16,
            "resampler_head_dim": 96,
            "qk_layer_norms_perceiver": True,
        },
    )
    config.dtype = "bfloat16"
    with torch.device("meta"):
        model = IdeficsForVisionText2Text(config)
    config.save_pretrained(folder)
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in model.state_dict().items():
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": [*tensor.shape], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    layers = parser.parse_args().layers
    with tempfile.TemporaryDirectory() as name:
        checkpoint(Path(name), layers)
        command = [sys.executable, "-c", LOAD, str(SPEC), name, f"language.layers={layers}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    total, largest, before, peak = (int(word) / 1e9 for word in done.stdout.split())
    print(f"model {total:.2f} GB, its largest tensor {largest:.2f} GB")
    print(f"process before loading {before:.2f} GB, peak {peak:.2f} GB")
    print(f"peak - before - model = {peak - before - total:+.2f} GB")


if __name__ == "__main__":
    main()
