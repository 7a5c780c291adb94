"""Reports made by hand: a design in the shape of Flamingo-80B, and small random ones."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import Literal

from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.analysis.report import (
    NOTHING,
    Block,
    Climb,
    GraphReport,
    Largest,
    Operator,
    Phase,
    Saved,
)
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import Device
from vlmc.hardware.efficiency import Efficiency
from vlmc.ir import Role

Mode = Literal["train", "prefill", "decode"]
AGAIN: dict[Phase, Fraction] = {"again_selective": Fraction(1, 3), "again_full": Fraction(3, 4)}
"""Shares of a forward pass that checkpointing runs again."""
BATCH, TEXT, IMAGES, TOKENS = map(Polynomial.symbol, ("batch", "text", "images", "tokens"))


def block(
    name: str,
    role: Role,
    count: int,
    parameters: int,
    positions: Polynomial,
    width: int,
    *,
    mode: Mode = "train",
    trained: bool = False,
    reached: bool = False,
    limits: tuple[int, ...] = (1,),
    held: int = 34,
    looks: Polynomial = ZERO,
) -> Block:
    """A block that multiplies `positions` vectors by all of its parameters, in bf16."""
    flops = positions * (2 * parameters)
    activations = positions * (2 * width)
    split = parameters if limits != (1,) else 0
    phases: list[Phase] = ["forward"]
    if mode == "train":
        phases += ["backward_input"] * reached + ["backward_weight"] * (trained and reached)
        phases += ["again_selective", "again_full"] * (reached and "*" in name)
    operators: list[Operator] = []
    for phase in phases:
        moved = activations * 4 + 2 * parameters
        share = AGAIN.get(phase, Fraction(1))
        operators += [
            Operator(
                name="aten.mm",
                phase=phase,
                calls=4,
                flops=flops * share,
                bytes=moved * share,
                matmul=True,
            ),
            Operator(
                name="aten.add",
                phase=phase,
                calls=2,
                flops=ZERO,
                bytes=activations * 6,
                split=False,
            ),
        ]
    saves = mode == "train" and reached
    return Block(
        role=role,
        name=name,
        count=count,
        parameters=parameters,
        trained=trained,
        reached=reached,
        tensor_limits=limits,
        split_parameters=split,
        operators=tuple(operators),
        saved=Saved(
            none=positions * (held * width) if saves else ZERO,
            selective=positions * (held * 3 // 4 * width) if saves else ZERO,
            full=activations if saves else ZERO,
            split=Fraction(24, 34),
        ),
        input=activations,
        output=activations,
        all_reduces_again=(0, 1),
        peak_forward=Largest((positions * ((held if saves else 8) * width) + activations,)),
        climb=Climb(((activations * 4, Fraction(0)), (activations * 2, Fraction(1))))
        if saves
        else Climb(),
        looks=looks,
        source=looks if reached else ZERO,
        tensors=(parameters,),
        rows=(parameters,),
        split_along=(0 if split else -1,),
        seeing=() if split else (0,),
        cache=ZERO if mode == "train" or role != "language" else activations * 2,
    )


def flamingo_80b(mode: Mode = "train") -> GraphReport:
    """An NFNet-F6 in four stages, frozen; a resampler of 6 layers, trained; 80 layers of width
    8192, frozen, with a gated block, trained, ahead of every seventh; embedding and head."""
    text = BATCH * TEXT if mode != "decode" else BATCH
    seen = BATCH * IMAGES if mode != "decode" else ZERO
    grad = mode == "train"
    heads = (64, 8192, 22528)
    blocks = (
        *(
            block(f"encoder.stages.{stage}", "encoder", 1, size, seen * cells, width, mode=mode)
            for stage, (size, cells, width) in enumerate(
                [(3_000_000, 26000, 256), (36_000_000, 6500, 512)]
            )
        ),
        block("encoder.stages.2.*", "encoder", 24, 12_000_000, seen * 1600, 1536, mode=mode),
        block("encoder.stages.3.*", "encoder", 12, 9_000_000, seen * 400, 1536, mode=mode),
        block(
            "adapter.layers.*", "adapter", 6, 32_000_000, seen * TOKENS, 1536, mode=mode,
            trained=grad, reached=grad, limits=(16, 1536),
        ),
        block(
            "language.embedding", "language", 1, 262_000_000, ZERO, 8192, mode=mode,
            limits=(32000,),
        ),
        block(
            "fusion.gated.*", "fusion", 12, 870_000_000, text, 8192, mode=mode,
            trained=grad, reached=grad, limits=heads, looks=seen * (TOKENS * 2 * 1536),
        ),
        block(
            "language.layers.*", "language", 80, 870_000_000, text, 8192, mode=mode,
            reached=grad, limits=heads,
        ),
        block("language.norm", "language", 1, 8192, text, 8192, mode=mode, reached=grad),
        block(
            "head", "head", 1, 262_000_000, text, 8192, mode=mode, reached=grad, limits=(32000,)
        ),
    )  # fmt: skip
    order = [0, 1, *[2] * 24, *[3] * 12, *[4] * 6, 5]
    for layer in range(80):
        order += [6] if layer % 7 == 0 else []
        order.append(7)
    order += [8, 9]
    return GraphReport(
        design="flamingo-80b",
        mode=mode,
        trained=("adapter", "fusion") if grad else (),
        number_bytes=2,
        blocks=blocks,
        order=tuple(order),
        loss_peak=Largest((text * (32000 * 6),)) if grad else NOTHING,
    )


def random_report(random: Random, mode: Mode = "train") -> GraphReport:
    """Two to four blocks of an encoder's side, two to four of a language model's, all unlike;
    some of them are of one kind, some are trained where nothing reads what they make, some read the
    embedding again, some end in a head with a vocabulary of its own."""
    blocks: list[Block] = []
    reached = False
    for role, least in (("encoder", 0), ("adapter", 0), ("language", 1), ("fusion", 0)):
        for number in range(random.randint(least, 2)):
            trained = mode == "train" and random.random() < 0.5
            unread = trained and random.random() < 0.2
            reached = reached or (trained and not unread)
            positions = BATCH * (IMAGES * TOKENS if role in ("encoder", "adapter") else TEXT)
            blocks.append(
                block(
                    random.choice([f"{role}.{number}", f"{role}.*"]),
                    role, 1, random.randint(1, 40) * 100_000,
                    positions * random.randint(1, 3), random.choice([64, 128, 256]), mode=mode,
                    trained=trained, reached=reached and not unread,
                    limits=random.choice([(1,), (2,), (4, 64), (8,), (3,)])
                    if role in ("encoder", "adapter")
                    else random.choice([(4,), (8, 64), (2,)]),
                    looks=BATCH * (IMAGES * TOKENS * 256) if role == "fusion" else ZERO,
                )
            )  # fmt: skip
    if random.random() < 0.3:
        size = (random.choice([3, 7, 31]),)
        blocks[-1] = replace(blocks[-1], role="head", name="head", tensor_limits=size)
    words = [place for place, one in enumerate(blocks) if one.role in ("language", "fusion")]
    if len(words) > 1 and random.random() < 0.5:
        begin, *others = words
        blocks[begin] = replace(blocks[begin], name="language.begin")
        sizes = (blocks[begin].parameters // 2,)
        for place in random.sample(others, random.randint(1, len(others))):
            blocks[place] = replace(blocks[place], embedding=sizes, embedding_rows=sizes)
    order = list(range(len(blocks)))
    if mode == "decode":  # reports of one design may number its blocks differently
        blocks, order = blocks[::-1], order[::-1]
    return GraphReport(
        design="random",
        mode=mode,
        trained=(),
        number_bytes=2,
        blocks=tuple(blocks),
        order=tuple(order),
        loss_peak=Largest((BATCH * TEXT * random.randint(0, 2000),)),
        inputs=BATCH * (random.randint(0, 20) * 100_000) if mode == "train" else ZERO,
    )


def small_device(memory_gb: float) -> Device:
    """A device on which random reports take about as long to compute as to exchange."""
    return Device(
        name="small",
        about="made up",
        source="made up",
        memory_gb=memory_gb,
        memory_gbps=20,
        tflops={"bf16": 0.2, "fp32": 0.1},
        efficiency=Efficiency(
            matmul=((1e6, 0.1), (1e9, 0.8)),
            memory=((1e4, 0.1), (1e8, 0.8)),
            measured=False,
            source="made up",
        ),
    )


def cluster(device: Device, count: int, per_node: int = 8, price: float | None = None) -> Cluster:
    """Devices that are joined as an HGX board and InfiniBand would."""
    return Cluster(
        device=device,
        count=count,
        per_node=per_node,
        node_gbps=450,
        network_gbps=50,
        price=price,
    )
