"""Scripts of ``benchmarks``, which is no package, as modules."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextlib.contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """The module of a script, which finds its neighbours as it does when it is run."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up by its name
        spec.loader.exec_module(module)
        yield module
