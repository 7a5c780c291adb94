"""README.md of a build: what it is and how to run it."""

from __future__ import annotations

from vlmc.diagnostics import UsageError
from vlmc.emit.artifact import Build
from vlmc.ir import Node
from vlmc.spec.document import ArtifactName

TEMPLATE = """\
# {name}

{about}{twin}Written by `{command}`: edits are lost at the next build.
Other files in this folder are kept.

## Parts

| part | kind | parameters | share | in training |
|---|---|---:|---:|---|
{parts}
| **all** | | **{total:,}** | | {trainable:,} trained |

## Tokens

| | tokens |
|---|---:|
{tokens}

## Run it

```
{run}
```

`run.py` answers from this folder where vlmc is not installed, once there are weights:

```
{alone}
```

`model.py` needs torch only:

```python
import torch
from model import build, load_weights

with torch.device("meta"):  # nothing is allocated before the weights come
    model = build()  # {total:,} parameters
load_weights(model, "weights")
```

## Files

| file | what it is |
|---|---|
| `model.py` | the model, one self-contained file |
| `run.py` | answers questions by the artifacts in this folder, without vlmc |
| `parallel/train.py` | trains on many devices as a plan of `vlmc plan` says, without vlmc |
| `arch.txt` | the design with every width, token count and parameter count inferred |
| `spec.resolved.yaml` | the spec with presets and defaults written out; itself a spec |
| `manifest.json` | the hash of each file, what is deferred and why, the predictions |
| `weights/` | safetensors under the names of `model.py`; not committed |
{folders}
{weights}
"""


FOLDERS: dict[ArtifactName, str] = {
    "compile": "exported graphs for torch.compile, which read `weights/`; not committed",
    "onnx": "graphs for ONNX Runtime, beside links to `weights/`; not committed",
    "aoti": "graphs that AOTInductor compiled, which read `weights/`; not committed",
}
LAYOUT = (
    "with `--layout transformers.js`: the ONNX graphs under the names of that client, beside links "
    "to `weights/`; not committed"
)
MEASURED = (
    "how far each artifact is from eager fp32, measured where it was built; not committed; "
    "`vlmc verify` measures again"
)


SEEDED = "`weights/` holds seeded values (seed 0): the twin runs at once, and answers nonsense."
DEFERRED = """\
`weights/` is deferred until there is a checkpoint:

```
{command}
```

`DIR` is a Hugging Face folder of this design (config.json + safetensors), or a build that has its
weights. `{seeded}` draws random ones instead."""


def source(build: Build) -> str:
    """The text of README.md. It says nothing of the machine, nor whether weights are there yet."""
    arch = build.arch
    tokens = arch.tokens
    rows = [
        ("one image, after the adapter", tokens.per_image),
        ("one image, in the sequence", tokens.in_sequence),
        ("images in one prompt", tokens.images),
        ("text in one prompt", tokens.text),
        ("longest sequence", tokens.sequence),
        ("context of the language model", tokens.context),
    ]
    if tokens.memory:
        rows.append(("attended to from outside the sequence", tokens.memory))
    return TEMPLATE.format(
        name=arch.name,
        about=f"{arch.about}\n\n" if arch.about else "",
        twin="The laptop-size twin: the same topology at a size that runs on a CPU.\n\n"
        if arch.mini
        else "",
        command=build.command(),
        parts="\n".join(
            f"| {node.role} | `{node.kind}` | {node.count:,} "
            f"| {node.count / max(arch.parameters, 1):.1%} "
            f"| {_training(node)} |"
            for node in arch.nodes
        ),
        total=arch.parameters,
        trainable=arch.trainable_parameters,
        tokens="\n".join(
            f"| {name} | {'no bound' if count is None else f'{count:,}'} |" for name, count in rows
        ),
        run=_run(build),
        alone=_alone(build),
        folders=_folders(build),
        weights=_weights(build),
    )


def _folders(build: Build) -> str:
    """A line of the table of files for each folder of graphs, and for what is measured of them."""
    rows = [(f"{name}/", FOLDERS[name]) for name in build.spec.artifacts if name in FOLDERS]
    if _in_browsers(build):
        rows.append(("transformers.js/", LAYOUT))
    if rows:
        rows.append(("verification.json", MEASURED))
    if "plan" in build.spec.artifacts and build.design.target is not None:
        rows.append(("plan.yaml", "how the design is run on its target, for `parallel/train.py`"))
    return "".join(f"| `{name}` | {text} |\n" for name, text in rows)


def _in_browsers(build: Build) -> bool:
    """Whether transformers.js has a class for the design, so that graphs may be made for it."""
    if "onnx" not in build.spec.artifacts:
        return False
    from vlmc.emit.layout.transformers_js import check  # with onnx, only where there are graphs

    try:
        check(build.arch)
    except UsageError:
        return False
    return True


def _training(node: Node) -> str:
    if not node.count:
        return ""
    return "frozen" if node.frozen else "trained"


def _weights(build: Build) -> str:
    if build.mini:
        return SEEDED
    command, seeded = build.command("--checkpoint DIR"), build.command("--seed 0")
    return DEFERRED.format(command=command, seeded=seeded)


def _run(build: Build) -> str:
    inputs = _inputs(build)
    twin = f"vlmc run {build.origin} --mini {inputs}"
    full = f"vlmc run {build.origin} {inputs} --checkpoint DIR"
    return twin if build.mini else f"{full}\n{twin}  # at laptop size"


def _alone(build: Build) -> str:
    engine = "onnx" if "onnx" in build.spec.artifacts else "eager"
    return f"python run.py --engine {engine} {_inputs(build)}"


def _inputs(build: Build) -> str:
    regions = build.arch.node("encoder").kind == "regions"
    shown = "--features regions.safetensors" if regions else "--image photo.png"
    return f'{shown} --prompt "What is in the picture?"'
