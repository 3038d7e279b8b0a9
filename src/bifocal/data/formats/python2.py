"""Opening the pickles of Python 2 that RefCOCO is published in, without running anything that they hold.

A pickle is a program, and loading one can do whatever its author wants. This one is read by an unpickler that refuses
every class and every function: what is left are dictionaries, lists, texts and numbers, which is all that the published
files hold. It is the only place that reads a pickle, and none is ever written.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251  only to derive the unpickler below, which can make nothing but plain data
from pathlib import Path
from typing import Any, NoReturn

from bifocal.config import UserError
from bifocal.data.files import read_bytes


class PlainUnpickler(pickle.Unpickler):
    """Plain data and nothing else."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse whatever is no plain data."""
        raise UserError(f"it holds {module}.{name}, and only plain data is opened")

    def persistent_load(self, identity: Any) -> NoReturn:
        """Refuse objects that lie elsewhere."""
        raise UserError("it refers to an object outside itself, and only plain data is opened")


def read_python2_pickle(path: str | Path) -> Any:
    """The plain data of a pickle, texts read as Latin-1 as Python 2 wrote them.

    Raises UserError for one that holds anything else, or is damaged.
    """
    data = read_bytes(path)
    try:
        return PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path} is not opened: {error}.") from None
    except Exception as error:  # a damaged pickle can raise nearly everything
        raise UserError(
            f"{path} is no pickle that can be read ({type(error).__name__}: {error}); it may be cut off."
        ) from None
