"""schemathesis asks the server whatever its own document allows, and more: it must never be at fault itself."""

from __future__ import annotations

import pytest

from bifocal.serving.limits import Limits
from bifocal.serving.run import Settings
from serving_live import ask, live

CASES = 2000


@pytest.mark.slow
def test_nothing_that_the_document_allows_is_the_server_s_fault() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error

    tried = 0
    with live(Settings(port=0, limits=Limits(new_tokens=8, choices=2), grace=2)) as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        strategies = [
            operation.as_strategy(generation_mode=mode)
            for operation in operations
            for mode in schemathesis.GenerationMode  # what the document allows, and what it does not
            if operation.method == "post"
        ]
        often = settings(
            max_examples=-(-CASES // len(strategies)),
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        for strategy in strategies:

            @often
            @given(case=strategy)
            def go(case) -> None:  # type: ignore[no-untyped-def]
                nonlocal tried
                tried += 1
                case.call_and_validate(base_url=running.url, checks=[not_a_server_error], timeout=20)

            go()
        assert tried >= CASES
        assert ask(running.url, "GET", "/health")[0] == 200
