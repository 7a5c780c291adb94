"""`vlmc plan`: what is asked, printed, written and refused. Costs are those of a report made by
hand; test_plan_twin.py has real ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.unit.graph_reports import flamingo_80b
from vlmc.analysis import analyse as analysis
from vlmc.analysis.report import GraphReport
from vlmc.commands import app
from vlmc.partition.plan import Mesh
from vlmc.pipeline import load_spec
from vlmc.planning.document import load_plan
from vlmc.spec.identity import fingerprint

ROOT = Path(__file__).parents[2]
SPEC = str(ROOT / "specs" / "flamingo.yaml")
LLAVA = str(ROOT / "specs" / "llava-1.5.yaml")
TRAIN = ["--set", "target.workload={mode: train, batch: 64}"]
FEW = ["--set", "target.parallel={pipeline: 2, tensor: 8}"]
"""Degrees that leave little to search."""
PIPELINE = ["--set", "target.parallel={pipeline: 4, tensor: 4}"]


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Reports by hand in place of those of graphs; every call of the analysis."""
    calls: list[dict[str, Any]] = []

    def analyse(arch: object, **options: Any) -> GraphReport:
        calls.append(options)
        return flamingo_80b(options["mode"])

    monkeypatch.setattr(analysis, "analyse", analyse)
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))  # no other test is to find them
    monkeypatch.chdir(tmp_path)
    return calls


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def done(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_plan_is_printed_and_written(tmp_path: Path) -> None:
    out = done(SPEC, *TRAIN, *PIPELINE)
    for word in (
        "train adapter, fusion with adamw", "64 sequences", "efficiency of the device: assumed",
        "Devices", "in flight", "language.layers.", "Degrees", "Memory of a device", "activations",
        "Activations that a stage keeps", "of a micro-batch",
        "bubble", "MFU", "written: plan.yaml, plan.svg",
    ):  # fmt: skip
        assert word in out, word
    plan = load_plan(tmp_path / "plan.yaml").plan
    assert plan.spec == fingerprint(load_spec(SPEC))
    assert (plan.mesh.pipeline, plan.mesh.tensor, plan.mesh.data) == (4, 4, 1)
    assert plan.trained == ("adapter", "fusion")
    ElementTree.fromstring((tmp_path / "plan.svg").read_text(encoding="utf-8"))


def test_the_encoder_has_a_degree_of_its_own(tmp_path: Path) -> None:
    parallel = "target.parallel={pipeline: 2, data: 1, tensor: 8, encoder: {data: 4, tensor: 2}}"
    assert "4 copies of the encoder" in done(SPEC, *TRAIN, "--set", parallel, "--why")
    plan = load_plan(tmp_path / "plan.yaml").plan
    assert plan.placement == "replicated"
    assert plan.encoder == Mesh(pipeline=1, data=4, tensor=2)
    done(SPEC, *TRAIN, "--set", parallel, "--check", "plan.yaml")


@pytest.mark.parametrize("own", ["tensor: 8", "data: 1"])
def test_the_encoder_keeps_to_the_degree_that_is_given(own: str, tmp_path: Path) -> None:
    parallel = f"target.parallel={{pipeline: 2, data: 1, tensor: 8, encoder: {{{own}}}}}"
    done(SPEC, *TRAIN, "--set", parallel)
    plan = load_plan(tmp_path / "plan.yaml").plan
    assert plan.placement != "replicated"
    assert plan.encoder is None


def test_the_same_spec_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done(SPEC, *TRAIN, *PIPELINE, "--output", f"{name}.yaml")
    for suffix in ("yaml", "svg"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (
            tmp_path / f"two.{suffix}"
        ).read_bytes()


def test_json_holds_the_plan_and_the_next_ones(tmp_path: Path) -> None:
    document = json.loads(done(SPEC, *TRAIN, "--json"))
    assert document["version"] == 1
    assert document["plan"]["batch"] == 64
    assert len(document["alternatives"]) == 3
    assert document["bound_seconds"] <= document["plan"]["predicted"]["step_seconds"]
    # nothing is written that nobody asked for, but what later calls need not read again
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_serving_figures_are_shown(asked_for: list[dict[str, Any]]) -> None:
    out = done(SPEC, "--set", "target.price=2.5")
    for word in ("serve 8 sequences at once, 128 tokens each", "first token", "tokens a second",
                 "images", "largest batch", "KV cache", "a million tokens",
                 "busiest group, prompts", "busiest group, tokens of answers",
                 "partial sums of tensor parallelism of tokens"):  # fmt: skip
        assert word in out, word
    predicted = json.loads(done(SPEC, "--json"))["plan"]["predicted"]
    parts = ("compute_seconds", "token_compute_seconds", "bubble_seconds", "token_bubble_seconds")
    parts = [predicted[name] for name in parts] + [
        one["seconds"] for one in predicted["collectives"]
    ]
    assert sum(parts) == pytest.approx(predicted["step_seconds"])
    assert [one["mode"] for one in asked_for] == ["prefill", "decode"]
    assert asked_for[0]["trained"] == ()
    assert "cost" not in done(SPEC)


def test_count_and_batch_take_the_place_of_the_spec(tmp_path: Path) -> None:
    done(SPEC, *TRAIN, *FEW, "--count", "32", "--batch", "96")
    plan = load_plan(tmp_path / "plan.yaml").plan
    assert (plan.count, plan.batch) == (32, 96)
    result = call(SPEC, "--count", "12")
    assert result.exit_code == 1
    assert "VLMC154" in result.output


def test_steps_of_many_micro_batches_are_drawn_by_a_part_of_them(tmp_path: Path) -> None:
    out = done(SPEC, *TRAIN, "--count", "64", "--batch", "2100", "--set",
               "target.parallel={pipeline: 32, tensor: 2, micro_batch: 1}")  # fmt: skip
    assert "2100 micro-batches of 1" in out
    drawn = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert "2048 of 2100 micro-batches of 1" in drawn


STAGES = """extends: {base}
target: {{hardware: a100-80gb, count: 8, workload: {{mode: train}}}}
training:
  optimiser: sgd
  stages:
  - {{name: align, train: [adapter], lr: 0.001, batch: 32}}
  - {{name: tune, train: [adapter, language], lr: 0.002, batch: 64, epochs: 3}}
"""


def test_a_stage_of_training_says_batch_and_parts(
    tmp_path: Path, asked_for: list[dict[str, Any]]
) -> None:
    spec = tmp_path / "stages.yaml"
    spec.write_text(STAGES.format(base=LLAVA), encoding="utf-8")
    out = done(str(spec), *FEW, "--set", "target.count=16")
    assert "train adapter" in out
    assert "with sgd, stage align; steps of 32 sequences" in out
    done(str(spec), *FEW, "--set", "target.count=16", "--stage", "tune", "--output", "two.yaml")
    plan = load_plan(tmp_path / "two.yaml").plan
    assert (plan.batch, plan.learning_rate, plan.epochs) == (64, 0.002, 3)
    assert [one["trained"] for one in asked_for] == [("adapter",), ("adapter", "language")]
    alone = ["--set", "target={hardware: b200, count: 8, workload: {mode: train}, parallel: "
             "{pipeline: 1, tensor: 1, checkpointing: none}}"]  # fmt: skip
    done(str(spec), *alone, "--set", "training.optimiser=adamw")
    config = json.loads((tmp_path / "deepspeed.json").read_text(encoding="utf-8"))
    assert config["optimizer"]["params"]["lr"] == 0.001
    result = call(str(spec), "--stage", "tuen")
    assert result.exit_code == 2
    assert "tune, align" in result.output
    assert call(SPEC, "--stage", "align").exit_code == 2


def test_why_compares_with_the_next(tmp_path: Path) -> None:
    out = done(SPEC, *TRAIN, "--why")
    assert "The plan and the next ones" in out
    assert out.count("longer") == 3


def test_nothing_fits_is_said_with_its_arithmetic() -> None:
    """Weights of 2 bytes and a limit that no device keeps."""
    result = call(SPEC, "--set", "target.workload.latency_ms=0.001")
    assert result.exit_code == 1
    assert "VLMC157" in result.output
    assert "target" in result.output or "count" in result.output
    found = json.loads(call(SPEC, "--set", "target.workload.latency_ms=0.001", "--json").output)
    (fault,) = found["diagnostics"]
    assert fault["code"] == "VLMC157"
    assert fault["got"]
    assert fault["help"]


def test_risks_are_simulated() -> None:
    out = done(SPEC, *TRAIN, *PIPELINE, "--simulate", "stragglers,failures", "--slow", "50",
               "--mtbf-hours", "1000")  # fmt: skip
    assert "One device 50% slow: the step takes 1." in out
    assert "A node fails every 1,000 h, some node every 500 h." in out
    assert "Goodput 9" in out
    document = json.loads(done(SPEC, *TRAIN, *FEW, "--simulate", "failures", "--json"))
    risks = document["risks"]
    assert risks["straggling"] is None
    # 13 x 870M + 6 x 32M trained parameters, in fp32 with two moments
    trained = 12 * 870_000_000 + 6 * 32_000_000
    assert risks["checkpoint_bytes"] == 12 * trained
    assert risks["checkpoint_seconds"] == pytest.approx(12 * trained / 2e9)
    assert 0.9 < risks["failures"]["goodput"] < 1


def test_a_slow_device_costs_at_most_what_it_lacks() -> None:
    document = json.loads(done(SPEC, *TRAIN, *PIPELINE, "--simulate", "stragglers", "--json"))
    slowdowns = [
        one["step_seconds"] / one["healthy_seconds"] for one in document["risks"]["straggling"]
    ]
    assert len(slowdowns) == 4
    assert all(1 <= one <= 1.25 + 1e-9 for one in slowdowns)  # 80% of the speed
    assert max(slowdowns) > 1.2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([LLAVA, "--simulate", "floods", *TRAIN], 2, "failures, stragglers"),
        ([SPEC, "--simulate", "failures"], 2, "about training"),
        ([SPEC, "none.yaml"], 2, "one spec"),
        (["adapter.queries=3"], 2, "no --sweep"),
        ([SPEC, "adapter.queries=3"], 2, "no --sweep"),
        (["none.yaml"], 2, "none.yaml"),
        ([SPEC, "--output", "plan.json"], 2, ".yaml"),
        ([SPEC, "--output", "no/folder/plan.yaml"], 2, ".yaml"),
        ([SPEC, "--check", "none.yaml"], 2, "none.yaml"),
        ([SPEC, "--set", "target.precision=int8"], 1, "expected: bf16, fp16, fp32"),
        ([SPEC, "--set", "target={hardware: t4, precision: int4}"], 1, "help: precision: fp16"),
        ([SPEC, "--set", "target.precision={default: fp32, language: fp8}"], 1,
         "help: language: bf16"),
        ([SPEC, "--set", "target.precision={default: int8, encoder: fp32}"], 1,
         "help: default: bf16"),
        ([SPEC, "--sweep", "target.count"], 2, "key.path=value"),
        ([SPEC, "--sweep", "target.count=1,2", "target.count=4"], 2, "twice"),
        ([SPEC, "--sweep", "target.count=8", "--why"], 2, "about one plan"),
        ([SPEC, "--set", "target.hardware=a100"], 1, "VLMC150"),
        ([SPEC, "--set", "target.price=0"], 1, "VLMC012"),
        ([SPEC, "--set", "target.network_gbps=0"], 1, "VLMC012"),
        ([SPEC, "--set", "training.optimiser=adm"], 1, "adamw"),
        ([SPEC, "--set", "target.parallel={data: 16}"], 1, "VLMC155"),
        ([SPEC, "--sweep", "target.count=8", "--slow", "5"], 2, "about one plan"),
        ([SPEC, "--check", "none.yaml", "--why"], 2, "leave out --why"),
        ([SPEC, "--check", "none.yaml", "--sweep", "target.count=8"], 2, "leave out --sweep"),
        ([SPEC, "--check", "none.yaml", "--simulate", "failures"], 2, "leave out --simulate"),
        ([SPEC, "--check", "none.yaml", "--output", "plan.yaml"], 2, "leave out --output"),
        ([SPEC, *TRAIN, "--slow", "10"], 2, "--simulate stragglers"),
        ([SPEC, *TRAIN, "--slow", "10", "--simulate", "failures"], 2, "--simulate stragglers"),
        ([SPEC, *TRAIN, "--mtbf-hours", "10"], 2, "--simulate failures"),
        ([SPEC, *TRAIN, "--simulate", "stragglers", "--slow", "nan"], 2, "--slow nan"),
        ([SPEC, *TRAIN, "--simulate", "stragglers", "--slow", "-1"], 2, "--slow -1"),
        ([SPEC, *TRAIN, "--simulate", "failures", "--mtbf-hours", "nan"], 2, "--mtbf-hours nan"),
        ([SPEC, *TRAIN, "--simulate", "failures", "--mtbf-hours", "inf"], 2, "--mtbf-hours inf"),
        ([SPEC, *TRAIN, "--simulate", "failures", "--mtbf-hours", "1e10"], 2, "--mtbf-hours 1e+10"),
        ([SPEC, *TRAIN, *FEW, "--simulate", "failures", "--mtbf-hours", "1e-9"], 2,
         "nothing would ever be done"),
        ([SPEC, "--batch", "99999999999"], 2, "2147483647"),
        ([SPEC, "--batch", "2147483647"], 1, "Memory: the fullest device needs"),
        ([SPEC, "--set", "target.price=.nan"], 1, "a finite number"),
        ([SPEC, "--set", "target.price=-1"], 1, "VLMC012"),
        ([SPEC, "--set", "target.network_gbps=.inf"], 1, "a finite number"),
        ([SPEC, "--set", "target.workload.latency_ms=.nan"], 1, "a finite number"),
        ([SPEC, "--count", "99999999999"], 1, "VLMC012"),
        ([SPEC, "--sweep", "adapter.quieries=32,64"], 1, "VLMC010 unknown key `quieries`"),
        ([SPEC, "--sweep", "adapter.quieries=32,64"], 1, "help: queries"),
        ([SPEC, "--sweep", "target.workload.latency_ms=0.001", "--json"], 1, "VLMC157"),
        ([SPEC, *TRAIN, *FEW, "--simulate", "stragglers", "--slow", "100"], 2, "below 100"),
        ([SPEC, "--set", "target.workload.first_token_ms=0"], 1, "VLMC012"),
        ([SPEC, "--set", "target.parallel.zero=4"], 1, "0, 1, 2 or 3"),
        ([SPEC, "--set", "target.parallel.schedule=dualpipe"], 1, "zero_bubble"),
        ([SPEC, "--set", "target.parallel.checkpointing=some"], 1, "selective"),
        ([SPEC, "--set", "target.parallel.checkpointing={language.layers.*: some}"], 1,
         "selective"),
        ([SPEC, *TRAIN, "--set", "target.parallel={schedule: 1f1b, chunks: 2}"], 1, "VLMC158"),
        ([SPEC, *TRAIN, "--set", "target.precision=fp16"], 1, "help: precision: bf16"),
        ([SPEC, "--set", "target.parallel={tensor: 4, encoder: {tensor: 3}}"], 1,
         "VLMC158"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(words: list[str], code: int, said: str) -> None:
    result = call(*words)
    assert result.exit_code == code, result.output
    assert said in result.output


@pytest.mark.parametrize(
    ("words", "code", "path", "help_"),
    [
        (["--batch", "7", "--set", "target.parallel={data: 4}"], "VLMC155", "data",
         "--batch 8, or data: 1"),
        (["--batch", "2", "--set", "target.parallel={data: 4}"], "VLMC155", "data",
         "--batch 4, or data: 2"),
        (["--set", "target.parallel={language: {data: 4}}", "--batch", "6"], "VLMC155", "data",
         "--batch 8, or data: 3"),
        (["--set", "target.parallel={data: 4, micro_batch: 3}"], "VLMC163", "micro_batch",
         "micro_batch: 2"),
        (["--set", "target.parallel={micro_batch: 128}"], "VLMC163", "micro_batch",
         "micro_batch: 64"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_come_out_even_is_told_what_would(
    words: list[str], code: str, path: str, help_: str
) -> None:
    result = call(SPEC, *TRAIN, *words, "--json")
    assert result.exit_code == 1
    (fault,) = json.loads(result.output)["diagnostics"]
    assert (fault["code"], fault["path"][-1], fault["help"]) == (code, path, help_)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule", "gpipe"),
        ("micro_batch", "2"),
        ("zero", "3"),
        ("checkpointing", "full"),
        ("chunks", "3"),
    ],
)
def test_what_a_spec_fixes_is_not_chosen(key: str, value: str) -> None:
    words = [*PIPELINE[:1], "target.parallel={pipeline: 4, tensor: 2}"]
    free = answer(*TRAIN, *words)["plan"]
    fixed = answer(*TRAIN, *words, "--set", f"target.parallel.{key}={value}")["plan"]
    kept = set(fixed["checkpointing"].values()) if key == "checkpointing" else {str(fixed[key])}
    assert kept == {value}
    assert fixed[key] != free[key]
    times = [one["predicted"]["step_seconds"] for one in (free, fixed)]
    assert times[0] <= times[1]


def test_blocks_are_told_apart_by_what_they_keep() -> None:
    words = [*PIPELINE[:1], "target.parallel={pipeline: 4, tensor: 2}"]
    by_stack = "target.parallel.checkpointing={language.layers.*: full, fusion.gated.*: none}"
    kept = answer(*TRAIN, *words, "--set", by_stack)["plan"]["checkpointing"]
    assert kept["language.layers.*"] == "full"
    assert "fusion.gated.*" not in kept
    result = call(SPEC, *TRAIN, "--set", by_stack.replace("layers", "layer"), "--json")
    assert result.exit_code == 1
    (fault,) = json.loads(result.output)["diagnostics"]
    assert fault["code"] == "VLMC162"
    assert fault["path"] == ["target", "parallel", "checkpointing", "language.layer.*"]
    assert "language.layers.*" in fault["help"]


def test_the_first_token_has_a_limit() -> None:
    free = answer()["plan"]["predicted"]["first_token_seconds"]
    result = call(SPEC, "--set", f"target.workload.first_token_ms={free * 500}")
    assert result.exit_code == 1
    assert "the first token within" in result.output
    told = answer("--set", f"target.workload.first_token_ms={free * 1001}")["plan"]["predicted"]
    assert told["first_token_seconds"] == free
    assert told["largest_batch"] == 8  # a second micro-batch would come too late


def test_what_answers_in_one_pass_generates_nothing(asked_for: list[dict[str, Any]]) -> None:
    words = ["--set", "target={hardware: b200, count: 8, price: 2}", "--json"]
    visualbert = str(ROOT / "specs" / "visualbert.yaml")
    found = json.loads(done(visualbert, *words))["plan"]
    told = found["predicted"]
    assert [one["mode"] for one in asked_for] == ["prefill"]
    assert told["step_seconds"] == told["first_token_seconds"]
    assert told["token_seconds"] is None
    assert told["cost_per_million_tokens"] is None
    assert found["text"] == load_spec(visualbert).token_budget.text
    out = done(visualbert, *words[:-1])
    assert "one answer each" in out
    assert "tokens a second" not in out


def test_a_design_without_a_target_is_told_how_to_get_one(tmp_path: Path) -> None:
    spec = tmp_path / "bare.yaml"
    spec.write_text("encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n")
    result = call(str(spec))
    assert result.exit_code == 2
    assert "target.hardware=a100-80gb" in result.output
    done(str(spec), "--set", "target.hardware=b200", "--set", "target.count=8")


def test_a_plan_is_checked(tmp_path: Path) -> None:
    done(SPEC, *TRAIN, *PIPELINE)
    assert "sound" in done(SPEC, *TRAIN, "--check", "plan.yaml")
    result = call(LLAVA, *TRAIN, "--count", "8", "--check", "plan.yaml")
    assert result.exit_code == 1
    assert "VLMC160" in result.output
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(text.replace("last: 79", "last: 7"), encoding="utf-8")
    result = call(SPEC, *TRAIN, "--check", "plan.yaml", "--json")
    assert result.exit_code == 1
    assert {one["code"] for one in json.loads(result.output)["diagnostics"]} == {"VLMC162"}


@pytest.mark.parametrize("words", [[*TRAIN, *PIPELINE], FEW])
def test_a_plan_that_is_checked_is_told_what_it_takes(tmp_path: Path, words: list[str]) -> None:
    done(SPEC, *words)
    told = load_plan(tmp_path / "plan.yaml").plan.predicted
    assert told is not None
    found = json.loads(done(SPEC, *words, "--check", "plan.yaml", "--json"))["predicted"]
    assert found["memory"] == [one.model_dump(mode="json") for one in told.memory]
    for name in ("step_seconds", "bubble_seconds", "mfu", "token_seconds"):
        wanted = getattr(told, name)
        assert found[name] == (wanted and pytest.approx(wanted, rel=1e-5))
    assert " GB on the fullest device" in done(SPEC, *words, "--check", "plan.yaml")


@pytest.mark.parametrize(
    ("before", "after", "code", "path", "said"),
    [
        ("hardware: a100-80gb", "hardware: l4", "VLMC157", "hardware", "GB (weights "),
        ("hardware: a100-80gb", "hardware: a100-81gb", "VLMC150", "hardware", "a100-81gb"),
        ("text: 512", "text: 51200", "VLMC130", "text", "51200"),
        ("micro_batch: 1", "micro_batch: 5", "VLMC163", "micro_batch", "64 / "),
    ],
)
def test_an_edited_plan_has_to_fit(
    tmp_path: Path, before: str, after: str, code: str, path: str, said: str
) -> None:
    done(SPEC, *TRAIN, *PIPELINE, "--set", "target.parallel.micro_batch=1")
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(text.replace(f"\n{before}\n", f"\n{after}\n"))
    result = call(SPEC, *TRAIN, "--check", "plan.yaml", "--json")
    assert result.exit_code == 1, result.output
    (fault,) = json.loads(result.output)["diagnostics"]
    assert (fault["code"], fault["path"][-1]) == (code, path)
    assert said in fault["got"]


def test_costs_are_read_off_the_graphs_once_for_all_calls(
    asked_for: list[dict[str, Any]],
) -> None:
    first = done(SPEC, *TRAIN, *PIPELINE)
    assert done(SPEC, *TRAIN, *PIPELINE) == first
    done(SPEC, *TRAIN, "--check", "plan.yaml")
    done(SPEC, *TRAIN, *FEW, "--sweep", "target.count=16,32")
    assert len(asked_for) == 1, "neither degrees nor devices are part of them"
    done(SPEC, *TRAIN, *PIPELINE, "--set", "target.precision=fp32")
    assert [one["precision"] for one in asked_for] == ["bf16", "fp32"]
    assert CliRunner().invoke(app, ["cache", "clear"]).exit_code == 0
    assert done(SPEC, *TRAIN, *PIPELINE) == first
    assert len(asked_for) == 3


def test_a_sweep_gives_a_table_a_csv_and_a_picture(
    tmp_path: Path, asked_for: list[dict[str, Any]]
) -> None:
    out = done(SPEC, *TRAIN, *FEW, "--sweep", "adapter.queries=32,64", "target.count=12,16,32")
    assert "written: sweep/sweep.csv, sweep/pareto.svg" in out
    assert "no plan for adapter.queries=32, target.count=12: VLMC109" in out  # 12 / (2 x 8)
    with (tmp_path / "sweep" / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["adapter.queries"] for row in rows] == ["32"] * 3 + ["64"] * 3
    assert [row["visual_tokens"] for row in rows] == ["", "32", "32", "", "64", "64"]
    assert [bool(row["fault"]) for row in rows] == [True, False, False] * 2
    assert all(float(row["sequences_per_second"]) > 0 for row in rows if not row["fault"])
    svg = (tmp_path / "sweep" / "pareto.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "64 visual tokens" in svg
    assert len(asked_for) == 2  # one analysis for each design, whatever it is planned for
    document = json.loads(
        done(SPEC, *TRAIN, *FEW, "--sweep", "target.count=16,32", "--output", "again", "--json")
    )
    assert [row["chosen"]["target.count"] for row in document["rows"]] == ["16", "32"]
    assert (tmp_path / "again" / "sweep.csv").exists()
    before = {path.name for path in tmp_path.iterdir()} - {"sweep"}
    (tmp_path / "sweep" / "sweep.csv").unlink()
    done(SPEC, *TRAIN, *FEW, "--sweep", "target.count=16", "--json")
    assert not (tmp_path / "sweep" / "sweep.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} - {"sweep"} == before


def test_the_twin_is_planned_on_the_target_of_the_design(tmp_path: Path) -> None:
    """The design itself would need 18 such devices; degrees are held to the twin's heads."""
    words = ["--set", "target.hardware=t4", "--set", "target.precision=fp16", "--set",
             "target.count=2"]  # fmt: skip
    assert "VLMC152" in call(SPEC, *words).output
    out = CliRunner().invoke(app, ["plan", SPEC, "--mini", *words]).output
    assert "VLMC152" not in out
    result = call(SPEC, "--mini", *words, "--set", "target.parallel.tensor=8")
    assert "VLMC109" in result.output


def answer(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(SPEC, *words, "--json"))
    return found


def test_the_fewest_devices_are_found() -> None:
    document = answer("--set", "target.count=auto")
    assert document["auto"]["key"] == "target.count"
    assert document["auto"]["value"] == document["plan"]["count"]
    fewest = document["plan"]["count"]
    assert document["auto"]["refused"] < fewest
    assert "plan" in answer("--count", str(fewest))
    assert call(SPEC, "--count", str(document["auto"]["refused"])).exit_code == 1


def test_the_largest_batch_within_a_limit_is_found() -> None:
    limit = ["--set", "target.workload.latency_ms=60"]
    document = answer("--set", "target.workload.batch=auto", *limit)
    found = document["plan"]
    assert found["batch"] == document["auto"]["value"]
    assert found["predicted"]["token_seconds"] <= 0.06
    assert document["auto"]["refused"] > found["batch"]
    out = done(SPEC, "--set", "target.workload.batch=auto", *limit)
    assert f"target.workload.batch: {found['batch']:,}. " in out
    assert "would not do" in out
    result = call(SPEC, "--set", "target.workload={mode: train, batch: auto}")
    assert result.exit_code == 2
    assert "no answer in training" in result.output


def test_the_most_text_is_bounded_by_the_context(tmp_path: Path) -> None:
    words = ["--set", "target.count=8", "--set", "target.hardware=b200"]
    done(LLAVA, *words, "--set", "token_budget.text=auto")
    plan = load_plan(tmp_path / "plan.yaml").plan
    assert plan.text == (4096 - 576) // 64 * 64  # beside one image, in steps of 64
    done(LLAVA, *words, "--set", "token_budget={images: auto, text: 1024}")
    assert load_plan(tmp_path / "plan.yaml").plan.images == (4096 - 1024) // 576


def test_one_unknown_is_found_at_a_time() -> None:
    result = call(SPEC, "--set", "target.count=auto", "--set", "target.workload.batch=auto")
    assert result.exit_code == 2
    assert "one is found at a time" in result.output
    full = ["--set", "token_budget={images: auto, text: 4096}", "--set", "target.count=8"]
    result = call(LLAVA, *full)
    assert result.exit_code == 2
    assert "no room for an image" in result.output


def test_a_build_holds_the_plan_that_the_command_finds(
    tmp_path: Path, asked_for: list[dict[str, Any]]
) -> None:
    words = [*TRAIN, *PIPELINE]
    done(SPEC, *words)
    made = ["build", SPEC, *words, "--artifacts", "plan", "--output", "out"]
    result = CliRunner().invoke(app, made)
    assert result.exit_code == 0, result.output
    plan = (tmp_path / "plan.yaml").read_bytes()
    assert (tmp_path / "out" / "plan.yaml").read_bytes() == plan
    assert "`plan.yaml`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "current" in CliRunner().invoke(app, [*made, "--check"]).output
    (tmp_path / "out" / "plan.yaml").write_bytes(plan + b"#")
    stale = CliRunner().invoke(app, [*made, "--check"])
    assert stale.exit_code == 1
    assert "plan.yaml" in stale.output


def test_a_build_of_a_twin_has_its_plan_on_the_target_of_the_design(tmp_path: Path) -> None:
    devices = ["--set", "target.count=8"]
    done(LLAVA, "--mini", *devices)
    made = ["build", LLAVA, "--mini", *devices, "--artifacts", "plan", "--output", "out"]
    result = CliRunner().invoke(app, made)
    assert result.exit_code == 0, result.output
    built = (tmp_path / "out" / "plan.yaml").read_bytes()
    assert built == (tmp_path / "plan.yaml").read_bytes()
    assert "`plan.yaml`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    more = CliRunner().invoke(app, [*made, "--set", "target.count=16"])
    assert more.exit_code == 0, more.output
    assert load_plan(tmp_path / "out" / "plan.yaml").plan.count == 16


def test_why_a_build_has_no_plan_is_said(tmp_path: Path) -> None:
    spec = tmp_path / "bare.yaml"
    spec.write_text("encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n")
    made = ["build", str(spec), "--mini", "--artifacts", "plan", "--output", "out", "--json"]
    status = deferred(*made)
    assert status["reason"].startswith("the spec has no target")
    assert CliRunner().invoke(app, [*made, "--set", "target.hardware=b200"]).exit_code == 0
    status = deferred("build", "out", "--artifacts", "plan", "--json")
    assert status["reason"] == "the folder of a twin does not name the target of its design"
    assert status["command"].startswith("vlmc plan bare.yaml ")
    assert status["command"].endswith(" --mini --output plan.yaml")


def deferred(*words: str) -> dict[str, Any]:
    """Of plan.yaml in a build."""
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == 0, result.output
    (build,) = json.loads(result.stdout.strip().splitlines()[-1])["builds"]
    status = build["artifacts"]["plan.yaml"]
    assert status["status"] == "deferred"
    return status


def test_a_build_for_which_no_plan_fits_is_refused(tmp_path: Path) -> None:
    words = ["--set", "target.workload.latency_ms=0.001", "--artifacts", "plan"]
    result = CliRunner().invoke(app, ["build", SPEC, *words, "--output", "out"])
    assert result.exit_code == 1
    assert "VLMC157" in result.output
    assert not (tmp_path / "out").exists()


ON_ONE_STAGE = "target={hardware: b200, count: 8, workload: {mode: train, batch: 64}, parallel: "


def test_a_plan_that_deepspeed_can_run_has_its_config(tmp_path: Path) -> None:
    words = ["--set", ON_ONE_STAGE + "{pipeline: 1, tensor: 1}}"]
    out = done(SPEC, *words)
    assert "written: plan.yaml, deepspeed.json" in out
    assert "no deepspeed.json" not in out
    text = (tmp_path / "deepspeed.json").read_text(encoding="utf-8")
    assert "sound" in done(SPEC, *words, "--check", "plan.yaml")
    made = ["build", SPEC, *words, "--artifacts", "plan", "--output", "out"]
    result = CliRunner().invoke(app, made)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "parallel" / "deepspeed.json").read_text(encoding="utf-8") == text
    assert "current" in CliRunner().invoke(app, [*made, "--check"]).output
    for file in (tmp_path / "deepspeed.json", tmp_path / "out" / "parallel" / "deepspeed.json"):
        file.write_text(text.replace('"train_batch_size": ', '"train_batch_size": 1'))
        plan = file.parents["parallel" in file.parts] / "plan.yaml"
        result = call(SPEC, *words, "--check", str(plan), "--json")
        assert result.exit_code == 1, result.output
        (fault,) = json.loads(result.output)["diagnostics"]
        assert (fault["code"], fault["path"]) == ("VLMC164", ["train_batch_size"])
        assert fault["file"] == str(file)


@pytest.mark.parametrize(
    ("wrong", "code"), [("text: 51200", "VLMC130"), ("hardware: l4", "VLMC157")]
)
def test_what_is_wrong_with_a_plan_is_told_before_its_config(
    tmp_path: Path, wrong: str, code: str
) -> None:
    words = ["--set", ON_ONE_STAGE + "{pipeline: 1, tensor: 1}}"]
    done(SPEC, *words)
    plan, config = tmp_path / "plan.yaml", tmp_path / "deepspeed.json"
    text = plan.read_text(encoding="utf-8")
    key = wrong.partition(" ")[0]
    right = next(line for line in text.splitlines() if line.startswith(key))
    plan.write_text(text.replace(f"\n{right}\n", f"\n{wrong}\n"), encoding="utf-8")
    for config_text, also in (("{", "VLMC002"), ('{"train_batch_size": 1}', "VLMC013")):
        config.write_text(config_text, encoding="utf-8")
        result = call(SPEC, *words, "--check", "plan.yaml", "--json")
        assert result.exit_code == 1, result.output
        first, *more = json.loads(result.output)["diagnostics"]
        assert (first["code"], first["file"]) == (code, "plan.yaml")
        assert also in [one["code"] for one in more if one["file"] == "deepspeed.json"]


def test_why_deepspeed_cannot_run_a_plan_is_said(tmp_path: Path) -> None:
    out = done(SPEC, "--set", ON_ONE_STAGE + "{pipeline: 1, tensor: 2}}")
    assert "no deepspeed.json for this plan: DeepSpeed splits tensors of models" in out
    assert not (tmp_path / "deepspeed.json").exists()
    assert "deepspeed" not in done(SPEC)  # which serves
    result = CliRunner().invoke(
        app, ["build", SPEC, *TRAIN, *PIPELINE, "--artifacts", "plan", "--output", "out"]
    )
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "parallel" / "deepspeed.json").exists()
