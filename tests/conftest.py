"""What every test stands on: one thread, a fixed seed, no network, no window, and a cache of its own."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

# Before any test module imports a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg"
)

# On models this small a second thread only waits, and on a busy machine it waits fifty times as long.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or left in the cache of whoever runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


class SmokeRun(NamedTuple):
    """One quickstart at toy size: where it lies, and the seconds that the cores worked on it, added up."""

    place: Path
    core_seconds: float


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The one quickstart at toy size of a session."""
    from bifocal.cli import main

    begun = time.process_time()
    place = tmp_path_factory.mktemp("quickstart") / "smoke"
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        assert main(["quickstart", "--smoke", "--out", str(place)]) == 0
    finally:
        torch.set_num_threads(1)
    return SmokeRun(place, time.process_time() - begun)


@pytest.fixture(scope="session")
def smoke(smoke_run: SmokeRun) -> Path:
    """The directory of one quickstart at toy size, shared by all tests that only read it."""
    return smoke_run.place
