"""What is compared: each contender loads one system, then takes the same inputs.

Times are taken outside, by worker.py; what is done here is what a user of each tool would run at
its best: only the last token's logits where the tool can leave out the others, no sampling, no
tokenizer, pixels already normalised.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from systems import SYSTEMS, System
from torch import Tensor

SLOTS = 512
"""Tokens of a cache of fixed size."""


class Contender(Protocol):
    """One tool, ready to answer about one system."""

    def tokens(self) -> Iterator[int]:
        """The greedy answer to the prompt about one image, token by token, without an end."""
        ...

    def vision(self, images: int) -> None:
        """Encoder and adapter on a batch of images."""
        ...


def system_of(name: str) -> System:
    """A system by its name."""
    return next(system for system in SYSTEMS if system.name == name)


class _Transformers:
    """transformers' own classes; `cache` makes an empty key/value cache."""

    def __init__(self, system: System, folder: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForImageTextToText

        self.system = system
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder / "checkpoint", dtype=dtype
        ).eval()
        self.dtype = dtype
        self.see = self.features
        self.read = self.text

    def cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def features(self, pixels: Tensor) -> Any:
        """Visual tokens, as the language model takes them."""
        model = self.model
        if self.system.name == "idefics":
            hidden = model.model.vision_model(pixel_values=pixels).last_hidden_state
            return model.model.perceiver_resampler(hidden)[None]
        found = model.get_image_features(pixel_values=pixels)
        found = getattr(found, "pooler_output", found)
        return torch.cat(found, 0) if isinstance(found, list | tuple) else found

    def text(self, ids: Tensor, visual: Any, cache: Any, seen: Tensor) -> Tensor:
        """Logits of the newest token. `visual` stands in the prompt at the image's places, or is
        looked at from outside (idefics)."""
        model = self.model
        if self.system.name == "idefics":
            return model(
                input_ids=ids,
                attention_mask=seen,
                perceiver_embeddings=visual,
                image_attention_mask=self.looks(ids, seen),
                past_key_values=cache,
                use_cache=True,
                **self.last(model),
            ).logits[:, -1]
        words = model.get_input_embeddings()(ids)
        if visual is not None:
            places = (ids == self.system.image_token)[..., None].expand_as(words)
            words = words.masked_scatter(places, visual.to(words.dtype))
        inner = model.model.language_model if hasattr(model, "model") else model.language_model
        hidden = inner.model if hasattr(inner, "lm_head") else inner
        output = hidden(
            inputs_embeds=words, attention_mask=seen, past_key_values=cache, use_cache=True
        )
        head = inner.lm_head if hasattr(inner, "lm_head") else model.lm_head
        return head(output.last_hidden_state[:, -1])

    def looks(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Who sees the image: everything after the start token."""
        mask = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
        if seen.shape[1] == ids.shape[1]:
            mask[:, 0] = 0
        return mask

    def last(self, model: Any) -> dict[str, int]:
        """The option that leaves out the other tokens' logits, where there is one."""
        return (
            {"logits_to_keep": 1}
            if "logits_to_keep" in inspect.signature(model.forward).parameters
            else {}
        )

    def tokens(self) -> Iterator[int]:
        ids = self.system.ids()
        pixels = self.system.pixels(1).to(self.dtype)
        cache = self.cache()
        with torch.inference_mode():
            visual = self.see(pixels)
        step, seen = ids, torch.ones_like(ids)
        while True:
            with torch.inference_mode():
                given = visual if step is ids or self.system.name == "idefics" else None
                token = int(self.read(step, given, cache, seen).argmax())
            yield token
            step = torch.tensor([[token]])
            seen = torch.cat((seen, seen.new_ones(1, 1)), dim=1)

    def vision(self, images: int) -> None:
        pixels = self.system.pixels(images).to(self.dtype)
        with torch.inference_mode():
            self.see(pixels)


class TransformersEager(_Transformers):
    """As it is, with the cache that grows."""


class TransformersCompiled(_Transformers):
    """A cache of fixed size, and torch.compile over vision and language."""

    def __init__(self, system: System, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(system, folder, dtype)
        self.see = torch.compile(self.features)
        self.read = torch.compile(self.text)

    def cache(self) -> Any:
        from transformers import StaticCache

        config = self.model.config
        return StaticCache(config=config.get_text_config(), max_cache_len=SLOTS)


class TransformersOnnx:
    """What transformers' exporter writes, in ONNX Runtime: one graph for the whole prompt with its
    image, one for each further token where the exporter can make one."""

    def __init__(self, system: System, folder: Path, dtype: torch.dtype) -> None:
        import onnxruntime

        self.system = system
        self.folder = folder / "transformers-onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            for path in sorted(self.folder.glob("*.onnx"))
        }

    def tokens(self) -> Iterator[int]:
        ids = self.system.ids()
        pixels = self.system.pixels(1)
        feeds: dict[str, Any] = {
            "input_ids": ids.numpy(),
            "attention_mask": torch.ones_like(ids).numpy(),
            "pixel_values": (pixels[None] if self.system.name == "idefics" else pixels).numpy(),
        }
        if self.system.name == "idefics":
            looks = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
            looks[:, 0] = 0
            feeds["image_attention_mask"] = looks.numpy()
        session = self.sessions["model"]
        wanted = {one.name for one in session.get_inputs()}
        (logits, *_) = session.run(["logits"], {k: v for k, v in feeds.items() if k in wanted})
        yield int(logits[0, -1].argmax())
        yield from self.later(int(logits[0, -1].argmax()), ids.shape[1])

    def later(self, token: int, past: int) -> Iterator[int]:
        """Tokens after the first. The exporter's prompt graph gives no cache, so the cache holds
        zeros: the work of a step is the same, its tokens are not the answer's."""
        session = self.sessions["decode"]
        inputs, outputs = session.get_inputs(), [one.name for one in session.get_outputs()]
        layers = [one for one in inputs if one.name.endswith((".keys", ".values"))]
        cache = {
            one.name: np.zeros((1, int(one.shape[1]), past, int(one.shape[3])), np.float32)
            for one in layers
        }
        while True:
            past += 1
            feeds: dict[str, Any] = {**cache}
            for one in inputs:
                if one.name in cache:
                    continue
                shape = [int(extent) if str(extent).isdecimal() else 1 for extent in one.shape]
                if one.name == "attention_mask":
                    shape = [1, past]
                number = {"tensor(int64)": np.int64, "tensor(float)": np.float32}[one.type]
                feeds[one.name] = np.ones(shape, number)
            feeds["input_ids"][:] = token
            found = dict(zip(outputs, session.run(None, feeds), strict=True))
            token = int(found.pop("logits")[0, -1].argmax())
            later = [value for name, value in found.items() if name.endswith((".keys", ".values"))]
            cache = dict(zip(cache, later, strict=True))
            yield token

    def vision(self, images: int) -> None:
        pixels = self.system.pixels(images).numpy()
        for image in range(images):  # the exporter freezes the batch to that of its sample
            self.sessions["vision"].run(None, {"pixel_values": pixels[image : image + 1]})


def export_transformers(system: System, folder: Path, fusions: str | None) -> dict[str, Any]:
    """Writes what transformers' exporter can make of a checkpoint: by graph, the seconds that it
    took or the error. `model` is the whole prompt with its image, `vision` encoder and adapter, for
    which the exporter is given a module around them, `decode` a further token."""
    from transformers import PreTrainedModel
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    owner = TransformersEager(system, folder, torch.float32)
    model = owner.model

    class Seeing(PreTrainedModel):
        _supports_sdpa = True
        _supports_attention_backend = True

        def __init__(self) -> None:
            super().__init__(model.config)
            self.inner = model

        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
            return {"visual": owner.features(pixel_values)}

    target = folder / "transformers-onnx"
    target.mkdir(exist_ok=True)
    ids, pixels = system.ids(), system.pixels(1)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels[None] if system.name == "idefics" else pixels,
    }
    if system.name == "idefics":
        inputs["image_attention_mask"] = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
    exporter = OnnxExporter()
    config = OnnxConfig(dynamic=True, ort_fusions=fusions)
    seeing = Seeing().eval()
    makes: dict[str, Any] = {
        "model": lambda: exporter.export(model, inputs, config).program,
        "vision": lambda: exporter.export(seeing, {"pixel_values": pixels}, config).program,
        "decode": lambda: (
            exporter.export_for_generation(model, inputs, config).components["decode"].program
        ),
    }
    found: dict[str, Any] = {}
    for name, make in makes.items():
        begun = time.perf_counter()
        try:
            exporter.save_program(make(), target / f"{name}.onnx")
            found[name] = {"seconds": time.perf_counter() - begun}
        except Exception as error:  # whatever it cannot do is a finding
            found[name] = {"error": str(error).strip().split("\n")[0][:160]}
    return found


class Vlmc:
    """A build of vlmc, by one of its engines."""

    def __init__(self, system: System, build: Path, engine: str) -> None:
        from vlmc.pipeline import load_spec, resolve
        from vlmc.runtime.describe import describe
        from vlmc.runtime.engines.open import open_engine

        self.system = system
        spec = load_spec(build / "spec.resolved.yaml")
        design = describe(spec, resolve(spec))
        self.engine = open_engine(build, engine, design, threads=threads())

    def tokens(self) -> Iterator[int]:
        from vlmc.runtime.engines.engine import Row

        ids = self.system.ids()[0].numpy()
        pixels = self.system.pixels(1).numpy()
        outside = self.system.name == "idefics"
        row = Row(
            ids=ids,
            visual=np.zeros(len(ids), bool) if outside else ids == self.system.image_token,
            features=tuple(self.engine.encode_images(pixels)),
            seen=(np.arange(len(ids)) > 0)[:, None] if outside else None,
        )
        state, logits = self.engine.prefill([row])
        while True:
            token = int(logits[0].argmax())
            yield token
            logits = self.engine.step(state, np.array([token]))

    def vision(self, images: int) -> None:
        self.engine.encode_images(self.system.pixels(images).numpy())


class Bandwidth:
    """No model: how fast this host reads memory, by a sum over a gigabyte."""

    def __init__(self) -> None:
        self.data = torch.ones(2**28)

    def tokens(self) -> Iterator[int]:
        while True:
            self.data.sum()
            yield 0

    def vision(self, images: int) -> None:
        self.data.sum()


def opened(name: str, system: System, folder: Path, dtype: torch.dtype) -> Contender:
    """A contender by its name: `vlmc <engine>`, one of transformers', or the host's memory."""
    if name == "memory":
        return Bandwidth()
    if name.startswith("vlmc"):
        engine = name.split()[1]
        return Vlmc(
            system, folder / f"build-{engine.partition('-')[2] or dtype_name(dtype)}", engine
        )
    kinds: dict[str, Any] = {
        "transformers eager": TransformersEager,
        "transformers compile": TransformersCompiled,
        "transformers onnx": TransformersOnnx,
    }
    return kinds[name](system, folder, dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that a build knows a number format by."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def threads() -> int:
    """Threads that every contender uses."""
    return int(os.environ.get("BENCHMARK_THREADS", os.cpu_count() or 1))
