"""Shared by all tests: one torch thread, fixed random numbers, and the repository's folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds of tests keep graphs and notes in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    """One thread, and the same random numbers whatever ran before."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
