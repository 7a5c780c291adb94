"""Runs emitted models in a process that cannot see vlmc. Started with `python -I -S`.

Arguments: the folder that holds torch, then one folder for each model: model.py, weights/ and
calls.pt in, answers.pt out.
"""

import ast
import importlib.util
import sys
from pathlib import Path

site, *folders = sys.argv[1:]
sys.path.append(site)

import torch  # noqa: E402

torch.set_num_threads(1)
ALLOWED = {"torch", *sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 11))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            found.add(node.module.split(".")[0])
    return found


def answers(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The outputs of each call; calls marked `cached` share a cache."""
    assert imported(folder / "model.py") <= ALLOWED
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    with torch.device("meta"):
        model = module.build()
    module.load_weights(model, folder / "weights")
    cache = None
    found: list[dict[str, torch.Tensor]] = []
    for call in torch.load(folder / "calls.pt", weights_only=True):
        if call.pop("cached"):
            cache = model.new_cache() if cache is None else cache
            call["cache"] = cache
        with torch.no_grad():
            output = model(**call)
        found.append({"logits": output.logits})
        if output.loss is not None:
            found[-1]["loss"] = output.loss
    return found


for name in folders:
    torch.save(answers(Path(name)), Path(name, "answers.pt"))
assert "vlmc" not in sys.modules
assert importlib.util.find_spec("vlmc") is None
