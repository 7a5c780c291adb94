"""Shared by tests of engines: what takes long to make."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_cases import Twin
from exported_twins import exported_twins


@pytest.fixture(scope="session")
def compile_twins(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    return exported_twins(root, tmp_path_factory.mktemp)
