"""What the README shows is what the tool prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BAD = """\
encoder:
  preset: clip-vit-l-14-336
  patch_size: 15
  features: {layer: -2, drop_csl: true}
adapter: {kind: mlp, layers: 2}
fusion: placeholder
language: vicuna-7b-v1.5
token_budget: {images: 8, text: 2048}
"""


def vlmc(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from vlmc.commands import app; app()"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_diagnostic(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD, encoding="utf-8")
    printed = vlmc("validate", "bad.yaml", folder=tmp_path).stderr.strip()
    assert f"$ vlmc validate bad.yaml\n{printed}\n" in (root / "README.md").read_text("utf-8")


def test_the_table_of_specs(root: Path) -> None:
    specs = sorted(str(path.relative_to(root)) for path in (root / "specs").glob("*.yaml"))
    printed = vlmc("validate", "--json", *specs, folder=root).stdout
    readme = (root / "README.md").read_text("utf-8")
    for spec, design in zip(specs, json.loads(printed)["designs"], strict=True):
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{spec}]"))
        _, _, parameters, trained, tokens, _ = (cell.strip() for cell in row.split("|"))
        for shown, exact in ((parameters, "parameters"), (trained, "trainable")):
            unit = {"B": 1e9, "M": 1e6}[shown[-1]]
            assert abs(float(shown[:-1]) * unit / design[exact] - 1) < 0.006
        assert int(tokens) == design["visual_tokens_per_image"]


def test_what_a_build_holds_is_named(root: Path) -> None:
    built = (root / "generated" / "llava-1.5" / "README.md").read_text("utf-8")
    for name in ("run.py", "onnx/", "transformers.js/", "verification.json"):
        assert f"| `{name}` |" in built, name
    assert "\npython run.py --engine onnx --image photo.png --prompt" in built
    other = (root / "generated" / "flamingo" / "README.md").read_text("utf-8")
    assert "transformers.js" not in other, "it has no class for it"
    said = " ".join(vlmc("build", "--help", folder=root).stdout.split())
    assert "run.py" in said
    readme = (root / "README.md").read_text("utf-8")
    assert "vlmc.load(" in readme
    assert "(docs/runtime.md)" in readme
