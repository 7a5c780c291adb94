"""The emitted model needs torch alone, and gives the library's numbers bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from safetensors.torch import save_file

from tests.conftest import SPECS
from tests.strategies import Document, documents
from tests.unit.emitted import answers, calls, fits, same
from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.diagnostics import Severity
from vlmc.emit.backends.model_py import source
from vlmc.ir import Arch
from vlmc.resolver import check, flow, resolve
from vlmc.spec.loader import draft, load
from vlmc.spec.reader import parse

EXAMPLES = int(os.environ.get("VLMC_MODEL_PY_EXAMPLES", "20"))
DRIVER = Path(__file__).with_name("model_py_driver.py")


def arch_of(path: Path, *, mini: bool = False) -> Arch:
    return resolve(load(path).spec(), mini=mini)


def library_model(arch: Arch) -> torch.nn.Module:
    model = instantiate(arch, device="cpu")
    initialise(model, seed=0, open_gates=True)
    return model


def test_every_twin_alone_gives_the_librarys_numbers(tmp_path: Path) -> None:
    expected = {}
    for spec in SPECS:
        arch = arch_of(spec, mini=True)
        model = library_model(arch)
        folder = tmp_path / spec.stem
        (folder / "weights").mkdir(parents=True)
        (folder / "model.py").write_text(source(arch))
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "weights" / "model.safetensors")
        torch.save(calls(arch), folder / "calls.pt")
        expected[folder] = answers(model, calls(arch))
    site = Path(torch.__file__).parent.parent
    command = [sys.executable, "-I", "-S", str(DRIVER), str(site), *map(str, expected)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, wanted in expected.items():
        assert same(wanted, torch.load(folder / "answers.pt", weights_only=True)), folder.name


def emitted(arch: Arch) -> types.ModuleType:
    """The emitted file as a module of this process."""
    module = types.ModuleType("emitted_model")
    sys.modules["emitted_model"] = module
    exec(compile(source(arch), "model.py", "exec"), vars(module))
    return module


@given(document=documents())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="VLMC_MODEL_PY_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
def test_random_designs_give_the_librarys_numbers(document: Document) -> None:
    text = yaml.safe_dump(document, sort_keys=False)
    result = draft(parse(text, "drawn.yaml"), "drawn.yaml", default_name="drawn")
    found = result.diagnostics(check(flow(result.sections)))
    if any(diagnostic.severity == Severity.ERROR for diagnostic in found):
        return
    arch = resolve(result.spec())
    if not fits(arch):
        return
    model, inlined = library_model(arch), emitted(arch).build()
    assert list(model.state_dict()) == list(inlined.state_dict())
    inlined.load_state_dict(model.state_dict())
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == [name for name, p in inlined.named_parameters() if p.requires_grad]
    assert same(answers(model, calls(arch)), answers(inlined, calls(arch)))
