"""Weights in and out: what is refused, what is kept, and how much memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlmc.builder.checkpoint import load_checkpoint, load_part
from vlmc.builder.model import instantiate
from vlmc.builder.naming import fill, model_types, names_for, pattern, table
from vlmc.builder.seed import initialise
from vlmc.builder.weights import load_weights, save_weights, siblings
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.ir import Arch
from vlmc.resolver.resolve import resolve
from vlmc.spec.loader import draft
from vlmc.spec.reader import parse

CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "dtype": "float32",
    "image_token_index": 98,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 99,
        "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    },
}


def document(config: dict[str, Any]) -> dict[str, Any]:
    """The design of a LLaVA's config.json."""
    vision, text = config["vision_config"], config["text_config"]
    return {
        "schema": 1,
        "name": "checkpoint",
        "encoder": {
            "kind": "vit",
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "heads": vision["num_attention_heads"],
            "hidden": vision["intermediate_size"],
            "activation": "quick_gelu",
            "norm_eps": 1e-5,
            "features": {"layer": -2, "drop_cls": True},
            "frozen": True,
        },
        "adapter": {"kind": "mlp", "layers": 2},
        "fusion": {"kind": "placeholder", "token": config["image_token_index"]},
        "language": {
            "kind": "decoder",
            "width": text["hidden_size"],
            "layers": text["num_hidden_layers"],
            "heads": text["num_attention_heads"],
            "kv_heads": text["num_key_value_heads"],
            "hidden": text["intermediate_size"],
            "vocabulary": text["vocab_size"],
            "context": 2048,
            "norm_eps": text["rms_norm_eps"],
        },
    }


def arch_of(config: dict[str, Any], **language: Any) -> Arch:
    described = document(config)
    described["language"].update(language)
    found = draft(parse(json.dumps(described), "x.yaml"), "x.yaml", default_name="x")
    assert found.complete, found.problems
    return resolve(found.spec())


def disk_names(config: dict[str, Any], model: nn.Module) -> dict[str, str]:
    """Our names -> the names on disk."""
    names = names_for(config)
    found = {name: names.on_disk(name) for name, _ in model.named_parameters()}
    assert None not in found.values()
    return {ours: disk for ours, disk in found.items() if disk is not None}


def write(folder: Path, config: dict[str, Any] = CONFIG) -> dict[str, torch.Tensor]:
    """A checkpoint of random values; returns them by the names on disk."""
    folder.mkdir(exist_ok=True)
    model = instantiate(arch_of(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        disk: torch.randn(model.get_parameter(ours).shape, generator=generator)
        for ours, disk in disk_names(config, model).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def load(folder: Path, **more: Any) -> nn.Module:
    arch = arch_of(CONFIG)
    return load_checkpoint(instantiate(arch), arch, folder, **more)


def shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the checkpoint again as two shards."""
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    places = {name: file for file, members in parts.items() for name in members}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_arrives(tmp_path: Path, sharded: bool) -> None:
    tensors = write(tmp_path)
    if sharded:
        shard(tmp_path, tensors)
    model = load(tmp_path)
    for ours, disk in disk_names(CONFIG, model).items():
        assert torch.equal(model.get_parameter(ours), tensors[disk]), ours


def test_parameters_own_their_memory(tmp_path: Path) -> None:
    """Changing the file afterwards changes nothing in the model."""
    tensors = write(tmp_path)
    model = load(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(200_000))
    for ours, disk in disk_names(CONFIG, model).items():
        assert torch.equal(model.get_parameter(ours), tensors[disk]), ours


def test_frozen_parts_stay_frozen(tmp_path: Path) -> None:
    write(tmp_path)
    for name, parameter in load(tmp_path).named_parameters():
        assert parameter.requires_grad != name.startswith("encoder."), name


def test_dtype(tmp_path: Path) -> None:
    write(tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    write(tmp_path, {**CONFIG, "dtype": "bfloat16"})
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}


def test_all_faults_of_the_tensors_at_once(tmp_path: Path) -> None:
    tensors = write(tmp_path)
    del tensors["language_model.model.norm.weight"]
    del tensors["multi_modal_projector.linear_2.bias"]
    tensors["language_model.model.layers.7.mlp.up_proj.weight"] = torch.zeros(96, 64)
    tensors["surprise"] = torch.zeros(1)
    tensors["language_model.lm_head.weight"] = torch.zeros(98, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert "missing on disk" in text
    assert "language.norm.weight (language_model.model.norm.weight)" in text
    assert "adapter.layers.1.bias (multi_modal_projector.linear_2.bias)" in text
    assert "unexpected on disk" in text
    assert "language_model.model.layers.7.mlp.up_proj.weight" in text
    assert "surprise" in text
    assert "language_model.lm_head.weight: expected the shape [99, 64], got [98, 64]" in text


def test_tensors_that_are_no_real_numbers(tmp_path: Path) -> None:
    """Integers would be cast without a word: codes of a quantized layer, taken for weights."""
    tensors = write(tmp_path)
    norm, projection = "language_model.model.norm.weight", "multi_modal_projector.linear_1.weight"
    tensors[norm] = torch.ones(64, dtype=torch.int64)
    tensors[projection] = tensors[projection].to(torch.complex64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="no floating-point numbers") as caught:
        load(tmp_path)
    assert f"{norm} (I64)" in str(caught.value)
    assert f"{projection} (C64)" in str(caught.value)


def test_a_folder_of_another_size_has_a_short_list_of_faults(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3) for name in write(tmp_path)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=f"{len(tensors)} such faults in all") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) < 16


def test_own_weights_of_another_design_have_a_short_list_of_faults(tmp_path: Path) -> None:
    model = instantiate(arch_of(CONFIG))
    codes = {f"layer.{i}": torch.zeros(1, dtype=torch.int8) for i in range(300)}
    save_file(codes, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"unexpected: layer\.0, .* \(300 in all\)") as caught:
        load_weights(model, tmp_path)
    assert "no floating-point numbers: layer.0, " in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_tensor_given_in_two_dialects(tmp_path: Path) -> None:
    tensors = write(tmp_path)
    tensors["lm_head.weight"] = torch.zeros(99, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"head\.projection\.weight is given twice"):
        load(tmp_path)


CONTRADICTIONS: dict[str, tuple[str, Any, str]] = {
    "eps": ("text_config.rms_norm_eps", 1e-6, "norm_eps 1e-05"),
    "eps by default": ("text_config.rms_norm_eps", None, "norm_eps 1e-05"),
    "rotary base": ("text_config.rope_theta", 1e6, "positions.base 10000.0"),
    "new rotary base": (
        "text_config.rope_parameters",
        {"rope_theta": 1e6},
        "positions.base 10000.0",
    ),
    "scaled rotation": ("text_config.rope_scaling", {"type": "linear", "factor": 2}, "'linear'"),
    "activation": ("vision_config.hidden_act", "gelu", "activation 'quick_gelu'"),
    "unheard activation": ("text_config.hidden_act", "mish", "'mish' is not known here"),
    "heads": ("text_config.num_attention_heads", 8, "heads 4"),
    "feature layer": ("vision_feature_layer", -1, r"features.layer (2,)"),
    "feature layers": ("vision_feature_layer", [-2, -1], r"features.layer (2,)"),
    "strategy": ("vision_feature_select_strategy", "full", "features.drop_cls True"),
    "placeholder": ("image_token_index", 32000, "token 98"),
    "projector": ("projector_hidden_act", "relu", "activation 'gelu'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_config_that_contradicts_the_design(tmp_path: Path, name: str) -> None:
    """Shapes are the same in each of these: only config.json tells."""
    path, value, expected = CONTRADICTIONS[name]
    write(tmp_path)
    config = json.loads(json.dumps(CONFIG))
    at = config
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    at[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    assert f"config.json {path}" in str(caught.value)
    assert expected in str(caught.value)


def test_an_epsilon_that_went_through_fp32(tmp_path: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    write(tmp_path)
    config["text_config"]["rms_norm_eps"] = 9.999999747378752e-06
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path)


def test_a_tied_head(tmp_path: Path) -> None:
    """Absent, or there as a copy; another one is refused, and its lack is explained."""
    tensors = write(tmp_path)
    arch = arch_of(CONFIG, tied_head=True)
    with pytest.raises(UsageError, match="values of its own"):
        load_checkpoint(instantiate(arch), arch, tmp_path)
    embedding = "language_model.model.embed_tokens.weight"
    tensors["language_model.lm_head.weight"] = tensors[embedding].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    load_checkpoint(instantiate(arch), arch, tmp_path)
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    load_checkpoint(instantiate(arch), arch, tmp_path)
    with pytest.raises(UsageError, match="tied_head: true"):
        load(tmp_path)


def _no_folder(folder: Path) -> Path:
    return folder / "nowhere"


def _no_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


def _config_is_a_list(folder: Path) -> Path:
    (folder / "config.json").write_text("[]")
    return folder


def _config_is_no_json(folder: Path) -> Path:
    (folder / "config.json").write_bytes(b"\xff{")
    return folder


def _unknown_type(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "lava"}')
    return folder


def _path_as_type(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "../../x"}')
    return folder


def _no_type(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def _type_is_a_list(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": ["llava"]}))
    return folder


def _dtype_is_a_list(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": [1]}))
    return folder


def _quantized(folder: Path) -> Path:
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _only_pickle(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def _nothing(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


def _truncated(folder: Path) -> Path:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    return folder


def _not_safetensors(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"version https://example.invalid/spec/v1\n" * 4)
    return folder


def _empty(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def _sharded(folder: Path) -> Path:
    shard(folder, load_file(folder / "model.safetensors"))
    return folder


def _lost_shard(folder: Path) -> Path:
    (_sharded(folder) / "b.safetensors").unlink()
    return folder


def _lying_index(folder: Path) -> Path:
    path = _sharded(folder) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["surprise"] = "a.safetensors"
    path.write_text(json.dumps(index))
    return folder


def _leaving_index(folder: Path) -> Path:
    path = _sharded(folder) / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "../a.safetensors"}}')
    return folder


def _empty_index(folder: Path) -> Path:
    (_sharded(folder) / "model.safetensors.index.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("damage", "fault", "expected"),
    [
        (_no_folder, UsageError, "there is no such folder"),
        (_no_config, UsageError, r"there is no config\.json"),
        (_config_is_a_list, UsageError, "holds no JSON object"),
        (_config_is_no_json, UsageError, "not readable as JSON"),
        (_unknown_type, UsageError, "`lava` cannot be read; known are llava"),
        (_path_as_type, UsageError, "cannot be read"),
        (_no_type, UsageError, "names no model_type"),
        (_type_is_a_list, UsageError, r"^/.*: config\.json names no model_type"),
        (_dtype_is_a_list, UsageError, r"^/.*: config\.json dtype: \[1\] is not known here"),
        (_quantized, UsageError, "quantized"),
        (_only_pickle, UsageError, r"pytorch_model\.bin, which is pickle and is never loaded"),
        (_nothing, UsageError, r"no model\.safetensors"),
        (_truncated, EnvironmentFault, "damaged or cut short"),
        (_not_safetensors, EnvironmentFault, "damaged or cut short"),
        (_empty, EnvironmentFault, "damaged or cut short"),
        (_lost_shard, EnvironmentFault, r"1 of 2 shards .* missing: b\.safetensors"),
        (_lying_index, EnvironmentFault, "1 tensors are not where"),
        (_leaving_index, UsageError, r"names '\.\./a\.safetensors'"),
        (_empty_index, UsageError, "has no weight_map"),
    ],
)
def test_a_folder_that_cannot_be_read(
    tmp_path: Path, damage: Any, fault: type[Exception], expected: str
) -> None:
    write(tmp_path)
    with pytest.raises(fault, match=expected):
        load(damage(tmp_path))


def test_parts_from_folders_of_their_own(tmp_path: Path) -> None:
    """A CLIP for the encoder, a Llama for the language model with its head; the rest untouched."""
    tensors = write(tmp_path / "whole")
    for name, prefix, section, inner in (
        ("clip", "vision_tower.", "vision_config", "vision_model."),
        ("llama", "language_model.", "text_config", ""),
    ):
        (tmp_path / name).mkdir()
        part = {
            inner + key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        save_file(part, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG[section]))
    arch = arch_of(CONFIG)
    model = instantiate(arch)
    load_part(model, arch, "encoder", tmp_path / "clip")
    load_part(model, arch, "language", tmp_path / "llama")
    for ours, disk in disk_names(CONFIG, model).items():
        parameter = model.get_parameter(ours)
        if ours.startswith("adapter."):
            assert parameter.is_meta
        else:
            assert torch.equal(parameter, tensors[disk]), ours
    load_part(model, arch, "adapter", tmp_path / "whole")
    assert not any(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(UsageError, match="missing on disk: encoder"):
        load_part(model, arch, "encoder", tmp_path / "llama")


@pytest.mark.parametrize("limit", [5_000_000_000, 40_000])
def test_own_weights_there_and_back(tmp_path: Path, limit: int) -> None:
    arch = arch_of(CONFIG)
    model = instantiate(arch, device="cpu")
    initialise(model, seed=1)
    model.head.to(torch.bfloat16)
    files = save_weights(model, tmp_path / "one", max_shard_bytes=limit)
    again = save_weights(model, tmp_path / "two", max_shard_bytes=limit)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
    assert (len(files) > 2) == (limit < 1e6)
    groups = [{name for name, _ in group} for group in siblings(model)]
    by_the_library: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            one = load_file(path)
            held = [group for group in groups if group & one.keys()]
            assert all(group <= one.keys() for group in held)
            assert len(held) == 1 or sum(t.nbytes for t in one.values()) <= limit
            by_the_library |= one
    other = load_weights(instantiate(arch), tmp_path / "one")
    for name, parameter in model.named_parameters():
        assert torch.equal(by_the_library[name], parameter), name
        loaded = other.get_parameter(name)
        assert loaded.dtype == parameter.dtype
        assert torch.equal(loaded, parameter), name
        assert loaded.requires_grad == parameter.requires_grad
    save_weights(instantiate(arch_of(CONFIG, tied_head=True), device="cpu"), tmp_path / "three")
    with pytest.raises(UsageError, match=r"missing: head\.projection\.weight"):
        load_weights(instantiate(arch), tmp_path / "three")


def test_shared_parameters_are_stored_once(tmp_path: Path) -> None:
    first = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, nn.Linear(4, 4, bias=False))
    model[1].weight = first.weight
    save_weights(model, tmp_path)
    assert list(load_file(tmp_path / "model.safetensors")) == ["0.weight"]
    load_weights(model, tmp_path, dtype=torch.float16)
    assert model[1].weight is model[0].weight
    assert model[0].weight.dtype == torch.float16


@pytest.mark.parametrize("model_type", model_types())
def test_tables_are_sound(model_type: str) -> None:
    """Each rule fills what it binds, and matches the name that it makes itself."""
    found = table(model_type)
    assert found.rules or found.include
    for rule in found.rules:
        disk = fill(rule.disk, dict.fromkeys(pattern(rule.disk).groupindex, "3"))
        match = pattern(rule.disk).fullmatch(disk)
        assert match is not None
        assert rule.targets or rule.copy_of
        for target in rule.targets:
            assert pattern(target).fullmatch(fill(target, match.groupdict()))


def test_an_unknown_model_type_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="known are llava"):
        names_for({"model_type": "llavva"})


MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoint as t, torch
folder, what, dtype = Path(sys.argv[2]), sys.argv[3], getattr(torch, sys.argv[4])
config = json.loads((folder / "config.json").read_text())
arch = t.arch_of(config)
model = t.instantiate(arch)

def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
if what == "checkpoint":
    t.load_checkpoint(model, arch, folder, dtype=dtype)
else:
    t.load_weights(model, folder, dtype=dtype)
grown = status("VmHWM") - before
assert not any(p.is_meta for p in model.parameters())
print(json.dumps([grown, sum(p.nbytes for p in model.parameters())]))
if what == "save":
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    t.save_weights(model, folder / "out")
    print(json.dumps([status("VmHWM") - before, 0]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("what", "dtype"),
    [("checkpoint", "float32"), ("checkpoint", "bfloat16"), ("save", "float32")],
)
def test_memory(tmp_path: Path, what: str, dtype: str) -> None:
    """About 300 MB in one file: the peak is the model plus one tensor (and its cast copy)."""
    config = json.loads(json.dumps(CONFIG))
    config["text_config"] |= {
        "hidden_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2816,
    }
    model = instantiate(arch_of(config), device="cpu")
    assert 290e6 < sum(p.nbytes for p in model.parameters()) < 330e6
    largest = max(p.nbytes for p in model.parameters())
    if what == "checkpoint":
        names = disk_names(config, model)
        save_file(
            {names[n]: p.detach() for n, p in model.named_parameters()},
            tmp_path / "model.safetensors",
        )
    else:
        save_weights(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(tmp_path), what, dtype],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    overhead = 24e6
    for line in done.stdout.splitlines():
        grown, size = json.loads(line)
        assert size * 0.9 <= grown <= size + 2 * largest + overhead, (grown, size)
