"""What is read off a recorded step: exact polynomials, the whole depth from a shallow design,
frozen parts, checkpointing, caches."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from vlmc.analysis.analyse import analyse
from vlmc.analysis.fit import Fit, NotPolynomial
from vlmc.analysis.memory import CUDA_QUANTUM, States, peak
from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import GraphReport, Sizes
from vlmc.analysis.shrink import shrink
from vlmc.analysis.steps import SEQUENCE, monomials
from vlmc.diagnostics import UsageError
from vlmc.ir import Arch
from vlmc.partition.room import RESERVE
from vlmc.pipeline import load_spec
from vlmc.resolver import resolve

ROOT = Path(__file__).parent.parent.parent
SYSTEMS = [path.stem for path in sorted((ROOT / "specs").glob("*.yaml"))]
GENERATING = [name for name in SYSTEMS if name != "visualbert"]


def design(system: str, *, mini: bool = False) -> Arch:
    return resolve(load_spec(ROOT / "specs" / f"{system}.yaml"), mini=mini)


@pytest.fixture(scope="module")
def llava() -> GraphReport:
    return analyse(design("llava-1.5"))


@pytest.fixture(scope="module")
def flamingo() -> GraphReport:
    return analyse(design("flamingo-3b", mini=True), precision="fp32")


def test_a_polynomial_is_exact_and_takes_another_in_the_place_of_a_symbol() -> None:
    batch, text = Polynomial.symbol("batch"), Polynomial.symbol("text")
    third = (batch + 2) * text * Fraction(1, 3)
    assert third(batch=4, text=5) == 10
    swapped = (text * text).substitute("text", batch + 1)
    assert swapped == batch * batch + batch * 2 + 1
    assert not (third - third).terms


def test_a_fit_finds_the_polynomial_and_refuses_what_is_none() -> None:
    fit = Fit(monomials("", "batch", "batch text"), substitute={})
    values = [7 + 3 * p["batch"] * p["text"] for p in fit.points]
    assert str(fit(values)) == "3 batch text + 7"
    with pytest.raises(NotPolynomial):
        fit([p["text"] ** 2 for p in fit.points])


def test_symbols_of_a_basis_become_those_of_sizes() -> None:
    text, images = Polynomial.symbol("text"), Polynomial.symbol("images")
    fit = Fit(SEQUENCE, substitute={"sequence": text + images, "all_images": images})
    squares = fit([p["sequence"] ** 2 for p in fit.points])
    assert squares == text * text + text * images * 2 + images * images


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_shallow_design_stands_for_every_block(system: str) -> None:
    arch = design(system)
    shrunk = shrink(arch)
    for stack, instances in shrunk.stacks.items():
        role, _, name = stack.partition(".")
        if role == "gated_blocks":
            whole = arch.node("fusion").arguments["blocks"]
        elif name == "blocks":
            depths = arch.node("encoder").arguments["depths"]
            assert isinstance(depths, tuple)
            whole = sum(depths)
        else:
            whole = next(n for n in arch.nodes if n.role == role).arguments[name]
        assert sum(one.periods * one.times for one in instances) == whole
        assert len(instances) <= 10
    widths = [node.arguments.get("width") for node in arch.nodes]
    assert [node.arguments.get("width") for node in shrunk.arch.nodes] == widths


def test_parameters_are_exact_and_blocks_run_in_the_order_of_the_data(llava: GraphReport) -> None:
    assert llava.parameters == design("llava-1.5").parameters
    names = [llava.blocks[place].name for place in llava.order]
    assert names.count("encoder.layers.*") == 24, "the last of them is not read, but is there"
    assert names.count("language.layers.*") == 32
    assert list(dict.fromkeys(names)) == [
        "encoder.begin",
        "encoder.layers.*",
        "encoder.end",
        "adapter",
        "language.begin",
        "language.layers.*",
        "language.end",
        "head",
    ]
    assert sum(block.count for block in llava.blocks) == len(llava.order)


def test_a_layer_of_llama_costs_what_arithmetic_says(llava: GraphReport) -> None:
    layer = next(one for one in llava.blocks if one.name == "language.layers.*" and one.count > 1)
    sequence, width, hidden = 100 + 2 * 576, 4096, 11008
    products = 2 * sequence * (4 * width**2 + 3 * width * hidden)
    attention = 4 * sequence**2 * width
    forward = layer.flops("forward")(batch=3, text=100, images=2, tokens=576)
    assert forward == 3 * (products + attention)
    weights = layer.flops("backward_weight")(batch=3, text=100, images=2, tokens=576)
    assert weights == 3 * products
    assert layer.tensor_limits == (32, 11008)
    assert layer.parameters - layer.split_parameters == 2 * width, "norms are whole"
    assert layer.input == layer.output
    assert layer.output(batch=3, text=100, images=2, tokens=576) == 3 * sequence * width * 2


def test_no_scores_are_kept(llava: GraphReport) -> None:
    layer = next(one for one in llava.blocks if one.name == "language.layers.*" and one.count > 1)
    assert all(dict(monomial).get("text", 0) < 2 for monomial, _ in layer.saved.none)


def test_what_is_frozen_goes_backward_only_for_what_stands_before_it(
    flamingo: GraphReport,
) -> None:
    sizes = {"batch": 2, "text": 16, "images": 2, "tokens": flamingo.tokens}
    for block in flamingo.blocks:
        back = block.flops("backward_input")(**sizes), block.flops("backward_weight")(**sizes)
        if block.role == "encoder":
            assert not block.reached
            assert back == (0, 0)
        elif block.name == "language.layers.*":
            assert block.reached
            assert not block.trained
            assert back[0] > 0
            assert back[1] == 0
        elif block.name == "gated_blocks.*":
            assert block.trained
            assert min(back) > 0


def test_checkpointing_keeps_less(llava: GraphReport) -> None:
    sizes = Sizes(batch=4, text=512, images=1, tokens=llava.tokens)
    names = {block.name for block in llava.blocks if "*" in block.name}
    alone = States(gradient=0, optimiser=0)
    totals = [
        peak(llava, sizes, alone, dict.fromkeys(names, kept)).activations
        for kept in ("none", "selective", "full")
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[2] < totals[0] / 4


def test_a_peak_holds_the_states_of_what_is_trained(llava: GraphReport) -> None:
    sizes = Sizes(batch=1, text=64, images=1, tokens=llava.tokens)
    held = peak(llava, sizes, States())
    frozen = sum(one.parameters * one.count for one in llava.blocks if not one.trained)
    trained = llava.parameters - frozen
    assert held.weights == 4 * llava.parameters
    assert held.optimiser == 8 * trained
    assert held.gradients == 4 * trained, "the optimiser's step comes when all are there"
    assert held.at == "optimiser"


def test_weights_that_are_gathered_count_where_they_are_held(flamingo: GraphReport) -> None:
    sizes = Sizes(batch=2, text=16, images=2, tokens=flamingo.tokens)
    alone = peak(flamingo, sizes, States())
    everywhere = [10**9] * len(flamingo.timeline)
    beside = peak(flamingo, sizes, States(), gathered=everywhere)
    assert alone.at == beside.at != "optimiser"
    assert (beside.gathered, beside.total) == (10**9, alone.total + 10**9)
    last = flamingo.visits[flamingo.timeline[-1]]
    late = peak(flamingo, sizes, States(), gathered=[*[0] * len(everywhere[1:]), 10**9])
    assert late.at == flamingo.blocks[last.block].name
    assert late.gradients > alone.gradients


def test_a_cuda_device_gives_each_tensor_whole_pieces_of_512_bytes(flamingo: GraphReport) -> None:
    def rounded(numbers: int, each: int) -> int:
        return (numbers * each + 511) // 512 * 512

    sizes = Sizes(batch=2, text=16, images=2, tokens=flamingo.tokens)
    exact, held = (peak(flamingo, sizes, States(quantum=q)) for q in (1, CUDA_QUANTUM))
    blocks = [flamingo.blocks[place] for place in flamingo.order]
    weights = [number for block in blocks for number in block.tensors]
    trained = [n for block in blocks if block.trained for n in block.tensors]
    assert sum(weights) == flamingo.parameters
    assert held.weights == sum(rounded(number, 4) for number in weights) > exact.weights
    assert held.optimiser == 2 * sum(rounded(number, 4) for number in trained) > exact.optimiser
    assert held.activations == exact.activations
    at_the_end = [*[0] * len(flamingo.timeline[1:]), 10**9]
    late = [
        peak(flamingo, sizes, States(quantum=q), gathered=at_the_end) for q in (1, CUDA_QUANTUM)
    ]
    assert late[0].gradients < late[1].gradients <= sum(rounded(n, 4) for n in trained)


@pytest.mark.parametrize("ranks", [3, 64])
def test_what_rounding_loses_is_far_within_the_reserve_of_a_plan(
    llava: GraphReport, ranks: int
) -> None:
    """With ZeRO-3 every state of every tensor is one piece of a rank's."""
    states = States(quantum=CUDA_QUANTUM)
    shards = [-(-n // ranks) for place in llava.order for n in llava.blocks[place].tensors]
    held = 4 * states.held(shards, 4)
    lost = held - 4 * States().held(shards, 4)
    assert 0 < lost < 0.05 * RESERVE * held


@pytest.mark.parametrize("system", GENERATING)
def test_caches_and_tokens_are_exact(system: str) -> None:
    spec = load_spec(ROOT / "specs" / f"{system}.yaml")
    arch = resolve(spec)
    report = analyse(resolve(spec, mini=True), mode="decode", precision="bf16")
    twin, mini = resolve(spec, mini=True), spec.mini()
    assert report.tokens == twin.tokens.per_image
    held = sum(
        report.blocks[place].cache(batch=3, text=7, images=2, tokens=report.tokens, answer=3)
        for place in report.order
        if report.blocks[place].role == "language"
    )
    each = mini.language.cache_elements_per_token()
    words = 7 + (2 * report.tokens if arch.serving == "sequence" else 0)
    if arch.serving == "encoder_decoder":
        words += 2 * report.tokens  # the encoder's, and three of the decoder's, in as many layers
    assert held == 3 * words * each * 2


def test_a_design_that_generates_nothing_cannot_decode() -> None:
    with pytest.raises(UsageError, match="one pass"):
        analyse(design("visualbert", mini=True), mode="decode")


def test_a_step_of_decoding_does_one_token_of_each_row() -> None:
    report = analyse(design("llava-1.5"), mode="decode")
    layer = next(one for one in report.blocks if one.name == "language.layers.*" and one.count > 1)
    products = 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    done = layer.flops("forward")(batch=5, text=900, images=0, tokens=576)
    assert done == 5 * (products + 4 * 900 * 4096)
    assert all(not one.operators for one in report.blocks if one.role == "encoder")
