"""The rules: each holds at its limit, its arithmetic is right, and its help mends the fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vlmc.diagnostics import Diagnostic
from vlmc.planning.asked import asked
from vlmc.resolver import check, flow, resolve
from vlmc.spec.draft import HEADINGS, draft
from vlmc.spec.reader import parse, plain

Design = dict[str, Any]

ENCODER: Design = {
    "kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "heads": 4,
    "hidden": 64,
}  # fmt: skip
LANGUAGE: Design = {
    "kind": "decoder", "width": 32, "layers": 4, "heads": 4, "hidden": 64, "vocabulary": 100,
    "context": 64,
}  # fmt: skip


def stage(name: str, *train: str, **fields: Any) -> Design:
    return {"name": name, "train": list(train), "lr": 0.1, **fields}


def design(**sections: Design | str) -> Design:
    """A small sound design with some sections' fields replaced."""
    base: Design = {
        "encoder": ENCODER,
        "adapter": {"kind": "mlp"},
        "language": LANGUAGE,
        "token_budget": {"images": 1, "text": 32},
    }
    for name, section in sections.items():
        former = base.get(name, {})
        fresh = isinstance(section, str) or "kind" in section
        base[name] = section if fresh else {**former, **section}
    return base


def diagnose(document: Design) -> list[Diagnostic]:
    text = yaml.safe_dump(document, sort_keys=False)
    read = draft(parse(text, "design"), "design", default_name="design")
    return read.diagnostics(check(flow(read.sections)))


def codes(document: Design) -> list[str]:
    return [diagnostic.code for diagnostic in diagnose(document)]


def target(**fields: Any) -> Design:
    return {"hardware": "a100-80gb", "workload": {"generate": 1}, **fields}


TRAIN: Design = {"mode": "train"}
BOTH: Design = {"tensor": 2, "pipeline": 2}
AT_THE_LIMIT = [
    ("VLMC101", "encoder", {"heads": 8}, {"heads": 5}),
    ("VLMC101", "language", {"heads": 2}, {"heads": 3}),
    ("VLMC102", "language", {"kv_heads": 2}, {"kv_heads": 3}),
    ("VLMC103", "target", target(count=4, parallel={"tensor": 4}),
     target(count=8, parallel={"tensor": 8})),
    ("VLMC103", "target", target(count=4, parallel={"encoder": {"tensor": 4}}),
     target(count=3, parallel={"encoder": {"tensor": 3}})),
    ("VLMC105", "encoder", {"image_size": 20}, {"image_size": 18}),
    ("VLMC106", "encoder", {"features": {"layer": 3}}, {"features": {"layer": 4}}),
    ("VLMC106", "encoder", {"features": {"layer": -4}}, {"features": {"layer": [-1, -5]}}),
    ("VLMC107", "encoder", {"cls": True, "features": {"drop_cls": True}},
     {"cls": False, "features": {"drop_cls": True}}),
    ("VLMC107", "encoder", {"post_norm": True, "features": {"norm": True}},
     {"post_norm": False, "features": {"norm": True}}),
    ("VLMC108", "language", {"head_dim": 8}, {"head_dim": 7}),
    ("VLMC108", "language", {"positions": {"kind": "learned"}},
     {"positions": {"kind": "learned"}, "context": None}),
    ("VLMC109", "target", target(count=4, parallel={"data": 2}),
     target(count=4, parallel={"data": 3})),
    ("VLMC109", "target", target(count=4, parallel={"encoder": {"data": 4}}),
     target(count=4, parallel={"encoder": {"data": 8}})),
    ("VLMC110", "fusion", {"kind": "placeholder", "placeholders": 17},
     {"kind": "placeholder", "placeholders": 16}),
    ("VLMC111", "fusion", {"kind": "placeholder", "token": 99},
     {"kind": "placeholder", "token": 100}),
    ("VLMC112", "adapter", {"kind": "qformer", "queries": 17, "layers": 2},
     {"kind": "qformer", "queries": 18, "layers": 2}),
    ("VLMC113", "adapter", {"kind": "qformer", "queries": 4, "layers": 4},
     {"kind": "qformer", "queries": 4, "layers": 5}),
    ("VLMC120", "fusion", {"kind": "placeholder", "point": "late"},
     {"kind": "placeholder", "point": "early"}),
    ("VLMC121", "fusion", {"kind": "placeholder"}, {"kind": "single_stream"}),
    ("VLMC122", "head", {"kind": "lm"}, {"kind": "classify", "classes": 2}),
    ("VLMC130", "token_budget", {"images": 1, "text": 47}, {"images": 1, "text": 48}),
    ("VLMC131", "target", target(workload={"prompt": 16, "generate": 16}),
     target(workload={"prompt": 16, "generate": 17})),
    ("VLMC150", "target", target(), target(hardware="a100")),
    ("VLMC151", "target", target(precision="bf16"),
     target(precision="fp8", workload={"mode": "train"})),
    ("VLMC151", "target", target(precision="int4"), target(hardware="t4", precision="tf32")),
    ("VLMC153", "target", target(hardware="rtx-4090", count=4),
     target(hardware="rtx-4090", count=8)),
    ("VLMC153", "target", target(hardware="rtx-4090", count=8, network_gbps=1.0),
     target(hardware="rtx-4090", count=4, per_node=2)),
    ("VLMC154", "target", target(count=8), target(count=9)),
    ("VLMC154", "target", target(count=12, per_node=4), target(count=12)),
    ("VLMC155", "target", target(count=4, parallel={"data": 4}, workload={"batch": 4}),
     target(count=4, parallel={"data": 4}, workload={"batch": 6})),
    ("VLMC155", "target",
     target(count=4, parallel={"language": {"data": 4}}, workload={"batch": 4}),
     target(count=4, parallel={"language": {"data": 4}}, workload={"batch": 3})),
    ("VLMC155", "target",
     target(count=4, parallel={"data": 4}, workload={"batch": 8, "mode": "train"}),
     target(count=4, parallel={"data": 4}, workload={"batch": 6, "mode": "train"})),
    ("VLMC156", "target", target(), target(hardware="none.yaml")),
    ("VLMC012", "target", target(hardware="t4", precision="fp32", workload=TRAIN),
     target(hardware="t4", precision="fp16", workload=TRAIN)),
    ("VLMC012", "target", target(precision={"default": "fp16", "language": "bf16"}, workload=TRAIN),
     target(precision={"default": "fp16"}, workload=TRAIN)),
    ("VLMC012", "target", target(precision="fp16"), target(precision="int8", workload=TRAIN)),
    ("VLMC158", "target", target(count=4, parallel={"tensor": 4, "encoder": {"tensor": 2}}),
     target(count=4, parallel={"tensor": 2, "encoder": {"tensor": 4}})),
    ("VLMC158", "target", target(count=4, parallel={"tensor": 2, "language": {"tensor": 4}}),
     target(count=4, parallel={"tensor": 4, "language": {"tensor": 2}})),
    ("VLMC158", "target", target(count=4, parallel={"tensor": 4, "encoder": {"tensor": 4}}),
     target(count=4, parallel={"tensor": 4, "encoder": {"tensor": 3}})),
    ("VLMC158", "target",
     target(count=4, parallel={"tensor": 2, "data": 2, "encoder": {"tensor": 1, "data": 4}}),
     target(count=4, parallel={"tensor": 2, "data": 2, "encoder": {"tensor": 1, "data": 2}})),
    ("VLMC158", "target",
     target(count=4, parallel={"data": 2, "encoder": {"data": 2}}),
     target(count=4, parallel={"data": 2, "encoder": {"data": 4}})),
    ("VLMC158", "target",
     target(count=4, parallel={**BOTH, "encoder": {"tensor": 1, "pipeline": 1}}),
     target(count=4, parallel={**BOTH, "encoder": {"tensor": 2, "pipeline": 1}})),
    ("VLMC158", "target", target(count=4, parallel={"pipeline": 2, "encoder": {"pipeline": 2}}),
     target(count=4, parallel={"pipeline": 2, "encoder": {"pipeline": 1}})),
    ("VLMC158", "target", target(count=4, parallel={"data": 4, "language": {"data": 4}}),
     target(count=4, parallel={"data": 4, "language": {"data": 2}})),
    ("VLMC158", "target", target(count=4, parallel={"pipeline": 2, "language": {"tensor": 2}}),
     target(count=4, parallel={"pipeline": 4, "language": {"pipeline": 2}})),
    ("VLMC109", "target", target(count=4, parallel={"pipeline": 2, "language": {"tensor": 2}}),
     target(count=4, parallel={"pipeline": 2, "language": {"tensor": 4}})),
    ("VLMC103", "target", target(count=8, parallel={"tensor": 4, "language": {"data": 2}}),
     target(count=8, parallel={"tensor": 8, "language": {"data": 1}})),
    ("VLMC155", "target",
     target(count=4, parallel={"data": 4, "language": {"tensor": 1}}, workload={"batch": 4}),
     target(count=4, parallel={"data": 4, "language": {"tensor": 1}}, workload={"batch": 3})),
    ("VLMC158", "target", target(parallel={"schedule": "interleaved", "chunks": 2}, workload=TRAIN),
     target(parallel={"schedule": "1f1b", "chunks": 2}, workload=TRAIN)),
    ("VLMC158", "target", target(parallel={"schedule": "1f1b", "chunks": 2}),
     target(parallel={"schedule": "zero_bubble", "chunks": 2}, workload=TRAIN)),
    ("VLMC158", "target", target(count=4, workload={**TRAIN, "batch": 4},
                                 parallel={"schedule": "interleaved", "pipeline": 2, "zero": 2}),
     target(count=4, workload={**TRAIN, "batch": 4},
            parallel={"schedule": "interleaved", "pipeline": 2, "zero": 3})),
    ("VLMC158", "target", target(count=4, workload={**TRAIN, "batch": 4},
                                 parallel={"schedule": "zero_bubble", "zero": 2}),
     target(count=4, workload={**TRAIN, "batch": 4},
            parallel={"schedule": "zero_bubble", "pipeline": 4, "zero": 2})),
    ("VLMC141", "training", {"stages": [{"name": "a", "train": ["adapter", "fusion"], "lr": 0.1}]},
     {"stages": [{"name": "a", "train": ["fusion"], "lr": 0.1}]}),
]  # fmt: skip
"""A rule's code, a section that just keeps it, and the nearest that breaks it."""


@pytest.mark.parametrize(("code", "section", "kept", "broken"), AT_THE_LIMIT)
def test_a_rule_holds_at_its_limit(code: str, section: str, kept: Design, broken: Design) -> None:
    assert code not in codes(design(**{section: kept}))
    assert code in codes(design(**{section: broken}))


def test_what_a_part_leaves_open_is_as_for_the_whole_model() -> None:
    """But for an encoder, whose degrees follow from the language model's."""
    degrees = {"tensor": 2, "pipeline": 2, "data": 4}
    document = design(target=target(
        count=16, workload={**TRAIN, "batch": 8}, parallel={**degrees, "language": {"data": 4}},
    ))  # fmt: skip
    assert codes(document) == []
    spec = draft(parse(yaml.safe_dump(document), "x"), "x", default_name="x").spec()
    request = asked(spec, resolve(spec)).request
    assert (request.tensor, request.pipeline, request.data) == (2, 2, 4)
    assert (request.encoder_tensor, request.placement) == (2, None)


def test_visual_tokens_among_words_are_as_wide() -> None:
    assert codes(design(adapter="identity")) == []
    assert codes(design(adapter="identity", language={"width": 64})) == ["VLMC123"]


def test_cross_attention_and_encoder_decoder_limits() -> None:
    cross = {"kind": "gated_cross_attention", "every": 4}
    assert codes(design(fusion=cross)) == []
    assert codes(design(fusion={**cross, "every": 5})) == ["VLMC114"]
    pair = {"kind": "encoder_decoder", "width": 32, "layers": 2, "heads": 4, "hidden": 64,
            "vocabulary": 100}  # fmt: skip
    assert codes(design(language=pair, fusion="prefix")) == []
    assert codes(design(language={**pair, "decoder_layers": 0}, fusion="prefix")) == ["VLMC115"]
    assert codes(design(language=pair, fusion=cross)) == ["VLMC121"]


def test_regions_go_where_they_are_read() -> None:
    regions = {"kind": "regions", "count": 4, "width": 32}
    stream = {"kind": "encoder", "width": 32, "layers": 2, "heads": 4, "hidden": 64,
              "vocabulary": 100, "context": 64}  # fmt: skip
    parts = {"encoder": regions, "adapter": "linear"}
    assert codes(design(**parts, language=stream, fusion="single_stream")) == []
    assert codes(design(**parts, fusion="placeholder")) == ["VLMC116"]


def test_no_block_or_table_is_larger_than_a_machine() -> None:
    """VLMC012 once one has 2^40 numbers: 2^20 entries of 2^20 channels."""
    wide = {"width": 2**20, "vocabulary": 2**20 - 1, "hidden": 4, "heads": 4, "head_dim": 4}
    assert codes(design(language=wide)) == []
    assert codes(design(language={**wide, "vocabulary": 2**20})) == ["VLMC012", "VLMC012"]


def test_tensor_parallelism_splits_key_value_heads() -> None:
    grouped = {"heads": 4, "kv_heads": 2}
    assert codes(design(language=grouped, target=target(count=2, parallel={"tensor": 2}))) == []
    found = codes(design(language=grouped, target=target(count=4, parallel={"tensor": 4})))
    assert found == ["VLMC104"]


FROZEN = {"frozen": True}


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ("nothing", ["VLMC140"]),
        ("encoder", []),
        ("adapter", []),
        ("head", []),
        ("fusion", ["VLMC140"]),
    ],
)
def test_something_with_parameters_must_train(free: str, expected: list[str]) -> None:
    """A placeholder fusion has no parameters: left free, it is nothing to train."""
    sections: dict[str, Any] = {
        "encoder": {**ENCODER, **FROZEN},
        "adapter": {"kind": "mlp", **FROZEN},
        "language": {**LANGUAGE, **FROZEN},
        "head": dict(FROZEN),
        "fusion": {"kind": "placeholder", **FROZEN},
        "target": target(workload={"mode": "train"}),
    }
    if free in sections:
        sections[free] = {**sections[free], "frozen": False}
    assert codes(design(**sections)) == expected
    sections["target"] = target()
    assert codes(design(**sections)) == []


def test_training_is_bounded_by_the_stage_that_trains_most() -> None:
    """7.06B parameters in bf16 and 16 bytes for the 21M of the adapter fit into 80 GB; all of the
    language model's do not, in whichever stage."""
    document: Design = {
        "encoder": {"preset": "clip-vit-l-14-336", "features": {"layer": -2, "drop_cls": True}},
        "adapter": "mlp",
        "language": "vicuna-7b-v1.5",
        "target": target(workload={"mode": "train"}),
    }
    align = {"name": "align", "train": ["adapter"], "lr": 1e-3}
    instruct = {"name": "instruct", "train": ["adapter", "language"], "lr": 2e-5}
    assert codes({**document, "training": {"stages": [align]}}) == []
    assert codes({**document, "training": {"stages": [align, instruct]}}) == ["VLMC152"]
    assert codes(document) == ["VLMC152"]


def test_the_memory_bound_is_its_arithmetic() -> None:
    """Vicuna-7B with CLIP-L in fp16, 8 sequences of 576 + 256 + 128 tokens: weights are 2 bytes
    each; the cache 2 x 32 layers x 4,096 channels x 2 bytes a token."""
    document = {
        "encoder": {"preset": "clip-vit-l-14-336", "features": {"layer": -2, "drop_cls": True}},
        "adapter": "mlp",
        "language": "vicuna-7b-v1.5",
        "token_budget": {"images": 1, "text": 512},
        "target": {"hardware": "t4", "precision": "fp16",
                   "workload": {"batch": 8, "prompt": 256, "generate": 128}},
    }  # fmt: skip
    (found,) = diagnose(document)
    assert found.code == "VLMC152"
    parts = [float(number) for number in re.findall(r"([\d.]+) GB", found.got or "")]
    tokens = 8 * (576 + 256 + 128)
    cache = tokens * 2 * 32 * 4096 * 2 / 1e9
    assert parts[0] == pytest.approx(2 * 7.064e9 / 1e9, rel=0.01)
    assert parts[1] == pytest.approx(cache, abs=0.05)
    assert parts[3] == pytest.approx(sum(parts[:3]), abs=0.11)
    assert found.help == f"count: {-(-parts[3] // 16):.0f}"
    document["target"]["count"] = 2
    assert codes(document) == []
    document["target"] |= {"count": 1, "workload": {"batch": 1, "prompt": 64, "generate": 64}}
    assert codes(document) == []


def mended(document: Design, diagnostic: Diagnostic) -> Design:
    """The document after its help was pasted: at the key of the fault's path, else beside it, or
    below it where the fault is a whole section. A section is pasted whole."""
    (patch,) = [plain(parse(diagnostic.help or "", "help"))]
    ((key, value),) = patch.items()
    path = list(diagnostic.path)
    if key in path:
        path = path[: path.index(key)]
    elif key in HEADINGS:
        path = []
    elif len(path) > 1:
        path = path[:-1]
    tree = yaml.safe_load(yaml.safe_dump(document))
    owner = tree
    for step in path:
        owner = owner.setdefault(step, {})
    if isinstance(value, dict) and isinstance(owner.get(key), dict):
        owner[key] = {**owner[key], **value}
    else:
        owner[key] = value
    return tree


sizes = st.integers(1, 12)


@st.composite
def designs(draw: st.DrawFn) -> Design:
    """Designs whose numbers rarely go together."""
    wide = st.sampled_from((16, 24, 32, 48, 60))
    language: Design = {
        "width": draw(wide),
        "heads": draw(sizes),
        "layers": draw(sizes),
        "context": draw(st.integers(1, 200)),
        "head_dim": draw(st.none() | st.just(8)),
    }
    if draw(st.booleans()):
        language["kv_heads"] = draw(sizes)
    encoder: Design = {
        "width": draw(wide),
        "heads": draw(sizes),
        "image_size": draw(st.integers(1, 64)),
        "patch_size": draw(sizes),
        "features": {"layer": draw(st.integers(-9, 9))},
    }
    fusion = {"kind": "placeholder", "placeholders": draw(st.integers(1, 40))}
    degree = st.sampled_from((1, 2, 3, 4, 5, 8))
    parallel: Design = {"tensor": draw(degree)}
    for role in ("encoder", "language"):
        if draw(st.integers(0, 3)) == 0:
            parallel[role] = {"tensor": draw(degree | st.just("auto"))}
    for key, words in (
        ("schedule", ("1f1b", "interleaved", "zero_bubble")),
        ("chunks", (1, 2)),
        ("zero", (0, 2, 3)),
        ("pipeline", (1, 2)),
    ):
        if draw(st.booleans()):
            parallel[key] = draw(st.sampled_from(words))
    return design(
        encoder=encoder,
        language=language,
        fusion=fusion,
        token_budget={"images": draw(st.integers(0, 6)), "text": draw(st.integers(1, 250))},
        target=target(
            count=draw(st.integers(1, 6)),
            parallel=parallel,
            precision=draw(st.sampled_from(("bf16", "fp16", "fp32"))),
            workload={"mode": draw(st.sampled_from(("serve", "train"))), "generate": 1},
        ),
    )


OF_DEGREES = ("VLMC103", "VLMC104", "VLMC158")
MENDED_BY_HELP = (
    "VLMC012", "VLMC101", "VLMC102", "VLMC105", "VLMC106", "VLMC109", "VLMC110", *OF_DEGREES,
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=designs(), choice=st.integers(0, 20))
def test_pasting_the_help_mends_the_fault(document: Design, choice: int) -> None:
    found = [d for d in diagnose(document) if d.code in (*MENDED_BY_HELP, "VLMC130")]
    assume(found)
    fault = found[choice % len(found)]
    all_after = diagnose(mended(document, fault))
    after = [d for d in all_after if d.code == fault.code]
    if fault.code in OF_DEGREES:
        assert {d.code for d in all_after} & set(OF_DEGREES) <= {d.code for d in found}
    others = [d for d in found if d.code == fault.code and d is not fault]
    assert (fault.path, fault.message) not in [(d.path, d.message) for d in after]
    assert len(after) <= len(others), (fault, after)


@pytest.mark.parametrize(
    ("parallel", "count"),
    [
        ({"tensor": 8}, 8),
        ({"tensor": 3, "pipeline": 2}, 4),
        ({"tensor": 4, "encoder": {"tensor": 2}}, 4),
        ({"language": {"tensor": 3}, "encoder": {"tensor": 2}}, 12),
        ({"tensor": 2, "encoder": {"tensor": 4, "data": 2}}, 8),
        ({"tensor": 3, "schedule": "1f1b", "chunks": 2, "zero": 3}, 4),
        ({"pipeline": 2, "data": 2, "schedule": "zero_bubble", "zero": 3}, 4),
    ],
)
@pytest.mark.parametrize("heads", [4, 12, 5])
def test_following_every_help_leads_to_a_plan(parallel: Design, count: int, heads: int) -> None:
    """What is left says what a plan is to be, and the planner takes it."""
    fields: Design = {"count": count, "precision": "fp16", "parallel": parallel}
    document = design(
        encoder={"width": 60, "heads": heads},
        target=target(**fields, workload={"mode": "train", "batch": 8}),
    )
    for _ in range(9):
        found = diagnose(document)
        if not found:
            break
        document = mended(document, found[0])
    assert codes(document) == []
    read = draft(parse(yaml.safe_dump(document), "design"), "design", default_name="design")
    asked(read.spec(), resolve(read.spec()))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=designs())
def test_the_arithmetic_of_a_division_is_right(document: Design) -> None:
    for found in diagnose(document):
        match = re.fullmatch(r"(\d+) / (\d+) = (\d+) remainder (\d+)", found.got or "")
        if match:
            number, divisor, quotient, rest = map(int, match.groups())
            assert number == divisor * quotient + rest
            assert 0 < rest < divisor
            assert str(number) in found.message or str(number) in (found.expected or "")


def test_the_batch_of_each_stage_is_shared_by_the_replicas() -> None:
    stages = [stage("a", "adapter", batch=8), stage("b", "language", batch=6)]
    workload = {"mode": "train", "batch": 3}
    document = design(
        target=target(count=4, parallel={"data": 4}, workload=workload),
        training={"stages": stages},
    )
    (found,) = diagnose(document)
    assert (found.code, found.path) == ("VLMC155", ("training", "stages", 1, "batch"))
    assert (found.got, found.help) == ("6 / 4 = 1 remainder 2", "batch: 8")


def test_a_device_file_stands_for_a_device(tmp_path: Path) -> None:
    text = """
about: mine
source: measured
memory_gb: 8
memory_gbps: 40
tflops: {fp32: 0.2}
efficiency: {matmul: [[1e6, 1]], memory: [[1e6, 1]], measured: true, source: mine}
"""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    fields: Design = {"hardware": str(path), "precision": "fp32"}
    assert codes(design(target=target(**fields))) == []
    assert codes(design(target=target(**fields, count=2))) == ["VLMC153"]
    assert codes(design(target=target(**fields, count=2, per_node=2))) == ["VLMC153"]
    assert codes(design(target=target(**fields, count=2, network_gbps=1.0))) == []
    assert codes(design(target=target(**fields | {"precision": "bf16"}))) == ["VLMC151"]
    path.write_text(text.replace("memory_gbps: 40", "memory_gbps: 0"), encoding="utf-8")
    (found,) = diagnose(design(target=target(**fields)))
    assert found.code == "VLMC156"
    assert "memory_gbps: input should be greater than 0 (it is 0)" in (found.got or "")


@pytest.mark.parametrize("field", ["price", "network_gbps"])
@pytest.mark.parametrize("value", [0, -1.5])
def test_prices_and_bandwidths_are_above_zero(field: str, value: float) -> None:
    (found,) = diagnose(design(target=target(**{field: value})))
    assert (found.code, found.path) == ("VLMC012", ("target", field))
    assert found.expected == "more than 0"


def test_an_unknown_optimiser_answers_with_those_there_are() -> None:
    (found,) = diagnose(design(training={"optimiser": "adam"}))
    assert (found.code, found.path) == ("VLMC012", ("training", "optimiser"))
    assert (found.expected, found.help) == ("adamw, sgd", "optimiser: adamw")


def test_the_budget_is_counted_as_it_is_said() -> None:
    document = design(token_budget={"images": 3, "text": 40})
    (found,) = diagnose(document)
    assert found.got == "40 text + 3 images x 17 tokens = 91"
    assert found.message.startswith("text and images are 27 over")
    assert found.help == "text: 13"
    document["token_budget"]["images"] = 9
    (found,) = diagnose(document)
    assert found.help == "token_budget: {images: 3, text: 13}"


@pytest.mark.parametrize(
    ("budget", "images", "text"),
    [
        ({"images": "auto", "text": 20}, 2, 20),
        ({"images": "auto", "text": 64}, 0, 64),
        ({"images": 2, "text": "auto"}, 2, 64 - 2 * 17),
        ({"images": "auto", "text": "auto"}, 1, 64 - 17),
    ],
)
def test_what_is_auto_is_the_most_that_the_context_holds(
    budget: Design, images: int, text: int
) -> None:
    document = design(token_budget=budget)
    assert codes(document) == []
    read = draft(parse(yaml.safe_dump(document), "design"), "design", default_name="design")
    tokens = resolve(read.spec()).tokens
    assert (tokens.images, tokens.text) == (images, text)


def test_an_unknown_number_of_devices_breaks_no_rule_about_them() -> None:
    few = target(count="auto", parallel={"data": 3}, workload={"batch": "auto", "generate": 1})
    assert codes(design(target=few)) == []
    assert codes(design(target={**few, "hardware": "rtx-4090"})) == []


def test_every_code_of_a_rule_is_tested_here() -> None:
    rules = (Path(__file__).parents[2] / "vlmc" / "resolver").rglob("*.py")
    used = {code for path in rules for code in re.findall(r"VLMC\d{3}", path.read_text())}
    assert used <= set(re.findall(r"VLMC\d{3}", Path(__file__).read_text()))


@pytest.mark.parametrize(("mode", "advised"), [("train", "fp32"), ("serve", "fp16")])
def test_a_number_format_is_advised_that_the_workload_can_have(mode: str, advised: str) -> None:
    """Training in fp16 is refused, so that VLMC151 must not lead there."""
    fields: Design = {"hardware": "t4", "precision": "bf16", "workload": {"mode": mode}}
    found = [one for one in diagnose(design(target=target(**fields))) if one.code == "VLMC151"]
    assert [one.help for one in found] == [f"precision: {advised}"]
