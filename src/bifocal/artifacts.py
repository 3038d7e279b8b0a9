"""Files that are whole or not there: directories with manifest and rename, atomic files, line-by-line logs.

A directory is written into `NAME.tmp/`, flushed to the disk, given a `manifest.json` with size and SHA-256 of
every file, and then renamed to `NAME/`. Whoever finds `NAME/` finds all of it; whoever reads it can verify
that no byte has changed since. A process killed on the way leaves `NAME.tmp/`, which nobody reads and the
next writer replaces.
"""

import codecs
import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bifocal.config import UserError

MANIFEST = "manifest.json"


# ---------------------------------------------------------------- directories


@contextlib.contextmanager
def write_directory(path: str | Path, *, replace: bool = False, manifest: bool = True) -> Iterator[Path]:
    """Give a temporary directory to write into, which at the end of the block becomes `path`, whole.

    What an earlier, killed attempt left behind is removed first. If the block raises, `path` stays as it was.

    Args:
        path: the directory that is to be; its parents are made.
        replace: an existing `path` is kept until the new one is complete, then replaced.
        manifest: write sizes and SHA-256; without one, files that are links to others are left as they are.

    Raises:
        UserError: if `path` exists and `replace` is false.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"'{path}' already exists; choose another place or remove it")
    temporary = _with_suffix(path, ".tmp")
    _remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if manifest:
            write_manifest(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Let a complete directory with its manifest take the place of `path`, by rename."""
    old = _with_suffix(path, ".old")
    if path.exists():
        # Two renames, and a kill between them leaves `.old`, which `newest_good` therefore looks at too.
        _remove(old)
        os.replace(path, old)
    os.replace(temporary, path)
    _flush_directory(path.parent)
    _remove(old)


def write_manifest(directory: str | Path) -> None:
    """Flush every file under `directory` to the disk; write sizes and SHA-256 to its `manifest.json`."""
    directory = Path(directory)
    manifest = {}
    for file in sorted(directory.rglob("*")):
        if file.is_dir():
            _flush_directory(file)
        elif file != directory / MANIFEST:
            _flush_file(file)
            manifest[file.relative_to(directory).as_posix()] = _measure(file)
    atomic_write_json(directory / MANIFEST, manifest)


def verify(path: str | Path) -> None:
    """Compare every file that the manifest of directory `path` names with its size and SHA-256.

    Raises:
        UserError: naming the first file that is missing, of another size or of another content.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"'{path}' is not a directory")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or not manifest:
        raise UserError(f"'{path / MANIFEST}' lists no files: it is damaged")
    for name, expected in manifest.items():
        file = path / name
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            raise UserError(f"'{path / MANIFEST}' does not say what '{name}' should be: it is damaged")
        if not file.is_file():
            raise UserError(f"'{file}' is missing")
        if file.stat().st_size != expected["bytes"]:
            size = file.stat().st_size
            raise UserError(f"'{file}' is damaged: it has {size} bytes instead of {expected['bytes']}")
        if _measure(file)["sha256"] != expected["sha256"]:
            raise UserError(f"'{file}' is damaged: its SHA-256 is not the one in {MANIFEST}")


def newest_good(parent: str | Path, pattern: str = "step-*") -> tuple[Path | None, list[str]]:
    """The newest directory in `parent` (by the number in its name) that passes `verify`, with notes.

    Returns:
        the directory (None if there is none), and one sentence for each newer one that was not taken and why.
    """
    parent = Path(parent)
    notes = []
    for candidate in sorted(parent.glob(pattern), key=_age, reverse=True):
        if candidate.suffix == ".tmp":
            notes.append(f"passed over '{candidate}': its writing was never finished")
            continue
        if candidate.suffix == ".old" and candidate.with_suffix("").exists():
            continue
        try:
            verify(candidate)
        except UserError as error:
            notes.append(f"passed over '{candidate}': {error}")
        else:
            return candidate, notes
    return None, notes


def refuse_overwrite(path: str | Path) -> None:
    """Refuse to start a run in a directory that already holds one.

    Raises:
        UserError: if `path` is a file, or holds a recipe, a finished model or checkpoints.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"'{path}' is a file, and a run needs a directory: choose another --out")
    for name in ("recipe.json", "config.json", "open_clip_config.json", "model.safetensors", "checkpoints"):
        if (path / name).exists():
            raise UserError(
                f"'{path}' already holds a run ({name}): choose another --out, or continue it with --resume"
            )


def refuse_full(path: str | Path) -> None:
    """Refuse to write a new folder where something is already.

    Raises:
        UserError: if `path` is a file, or a directory that holds anything.
    """
    path = Path(path)
    if path.is_file() or (path.exists() and any(path.iterdir())):
        raise UserError(f"{path} is not empty: choose another --out")


def require_free_space(path: str | Path, needed: int, what: str) -> None:
    """Refuse to write `needed` bytes to the disk of `path` (which need not exist yet) if they do not fit.

    Raises:
        UserError: with what is needed and what is free.
    """
    path = Path(path).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{what} needs {_readable(needed)} and the disk of '{path}' has {_readable(free)} free: "
            "free some space there or choose another --out"
        )


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which at the end of the block becomes `path`, even if the power fails.

    If the block raises, `path` holds what it held before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _with_suffix(path, f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_directory(path.parent)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` so that `path` holds what it held before or all of `data`, even if the power fails."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of `text` in UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """`atomic_write_text` of `value` as indented JSON; not-a-number and infinity are refused (ValueError)."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: naming the file, if it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from error


def json_line(value: Any) -> str:
    """`value` as one line of JSON, line end included; not-a-number and infinity are refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def append_json_line(path: str | Path, value: Any) -> None:
    """Add `value` as one line of JSON to a log, where it stays even if the process is killed afterwards.

    A half-written last line (its writer was killed) is cut off with a warning, since it would spoil this one.
    """
    path = Path(path)
    line = json_line(value).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if _cut_half_line(file):
            warnings.warn(f"'{path}' ended in a half-written line, which was cut off", stacklevel=2)
        file.write(line)


def cut_half_line(path: str | Path) -> bool:
    """Cut off a last line that has no end, as a killed writer leaves it; returns whether there was one."""
    with open(path, "r+b") as file:
        return _cut_half_line(file)


class Entry(NamedTuple):
    """One piece of a file; `where` says which, for messages: "Line 3 of answers.jsonl"."""

    where: str
    value: Any


def lines_of(path: str | Path) -> Iterator[Entry]:
    """The lines of a file as bytes, empty ones passed over; `parsed` makes JSON of each."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield Entry(f"Line {number} of {path}", line)


def parsed(line: Entry) -> Entry:
    """A line as the JSON value that it is."""
    try:
        return Entry(line.where, json.loads(line.value.decode("utf-8")))
    except UnicodeDecodeError:
        raise UserError(f"{line.where} is not UTF-8 text; save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{line.where} is not JSON: {reason}.") from None


def read_json_lines(path: str | Path, *, allow_partial_last: bool = False) -> list[Any]:
    """Every line of a JSON-lines file; empty lines are left out.

    Args:
        allow_partial_last: leave out a last line that has no line end and is not valid JSON, as a killed
            writer leaves it.

    Raises:
        UserError: naming the file, and the number of the first line that is not valid JSON.
    """
    lines = list(lines_of(path))
    values = []
    for line in lines:
        try:
            values.append(parsed(line).value)
        except UserError:
            if allow_partial_last and line is lines[-1] and _ends_in_half_line(path):
                break
            raise
    return values


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, in 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------- inside


def _cut_half_line(file: BinaryIO) -> bool:
    if not _has_half_line(file):
        return False
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return True


def _ends_in_half_line(path: str | Path) -> bool:
    """Whether the last line of a file has no end."""
    with open(path, "rb") as file:
        return _has_half_line(file)


def _has_half_line(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    return bool(size) and (file.seek(size - 1), file.read(1))[1] != b"\n"


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _age(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.name)
    return (int(numbers[-1]) if numbers else -1, path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _measure(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def _flush_file(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _flush_directory(directory: Path) -> None:
    """Make renames in `directory` outlast a power failure; only POSIX systems have a way to ask for it."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _readable(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
