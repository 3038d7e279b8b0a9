"""One server for all tests that only talk to it, and its models for what a client's answer is compared with."""

from collections.abc import Iterator

import pytest

from bifocal.serving.run import Running, Settings
from serving_live import live


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with live(Settings(port=0, grace=2)) as running:
        yield running
