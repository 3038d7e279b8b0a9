"""Settings: overriding a recipe by dotted flags, and writing one down so that it can be read back exactly.

A recipe is a nested frozen dataclass made by a Python function. Two things are done to it here:

- **Overrides.** `--model.width 256` changes one leaf. The program reads the fixed flags of each subcommand
  with `tyro`; what is left over are the overrides of the recipe, which depend on the recipe that was named,
  and those are resolved here: typed by the annotation of the field, all problems reported together, an
  unknown key refused with a suggestion.
- **Round trip.** `to_dict` and `from_dict` are inverse to each other through JSON, so that `recipe.json` and
  `config.json` bring back the very object that was written; `fingerprint` names it.

Fields may be annotated with int, float, bool, str, `pathlib.Path`, `Literal[...]`, tuples, dataclasses,
`Mapping[str, ...]` and unions of these (`int | None`). Numbers are finite, since JSON knows no others.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class UserError(ValueError):
    """What a user can put right: the message says in one sentence what is wrong, where, and what to do."""


class UserNote(UserWarning):
    """What a user should know of input that is taken, but not as it is; the message is one sentence."""


class _Unfit(ValueError):
    """A value that does not fit its annotation; the message says what was expected, the caller adds where."""


# ---------------------------------------------------------------- overrides


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """{"key.sub": "value"} from `--key.sub value` or `--key.sub=value`; dashes in a key are underscores.

    Raises:
        UserError: naming every stray word, flag without a value and flag given twice, all together.
    """
    flags: dict[str, str] = {}
    problems = []
    words = iter(range(len(arguments)))
    for position in words:
        word = arguments[position]
        if not word.startswith("--") or word == "--":
            problems.append(f"unexpected word '{word}': settings are given as --key value")
            continue
        name, equals, value = word[2:].partition("=")
        key = name.replace("-", "_")
        if not equals:
            following = position + 1
            if following == len(arguments) or arguments[following].startswith("--"):
                problems.append(f"--{name} needs a value, as in --{name} VALUE")
                continue
            value = arguments[next(words)]
        if key in flags:
            problems.append(f"--{name} is given twice")
        flags[key] = value
    _refuse(problems)
    return flags


def apply_overrides(recipe: T, overrides: Mapping[str, str]) -> T:
    """A copy of `recipe` (a nested dataclass) in which each dotted key has the value that its text says.

    The text is read as the field's annotation asks: `true` or `false`, `none` where None is allowed, a tuple
    as `64,128` or as JSON (`[64, 128]`; nested tuples and mappings only so). Every dataclass on the way is
    rebuilt, so its `__post_init__` checks the new values.

    Raises:
        UserError: with every unknown key (and the nearest known one), every unreadable value and every
            `ValueError` of a `__post_init__`, all together.
    """
    problems: list[str] = []
    tree: dict[str, Any] = {}
    known = list(flatten(recipe))
    for key in sorted(overrides):  # so that a group comes before its settings
        path = [part.replace("-", "_") for part in key.split(".")]
        problem = _misplaced(recipe, path, known)
        if problem:
            problems.append(problem)
            continue
        node: Any = tree
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if isinstance(node, dict):
            node[path[-1]] = overrides[key]
        else:
            problems.append(f"'{key}' cannot be set together with the group that it is in")
    changed = _rebuild(recipe, tree, "", problems)
    _refuse(problems)
    return changed


def flatten(recipe: object, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of every leaf of a nested dataclass, in the order of its fields."""
    leaves: dict[str, Any] = {}
    for field in _fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            leaves.update(flatten(value, f"{prefix}{field.name}."))
        else:
            leaves[prefix + field.name] = value
    return leaves


def _misplaced(recipe: object, path: list[str], known: list[str]) -> str | None:
    """Why `path` names no leaf of `recipe`, in words; None if it names one."""
    key, instance, annotation = ".".join(path), recipe, Any
    for depth, part in enumerate(path):
        if not dataclasses.is_dataclass(instance):
            parent = ".".join(path[:depth])
            if instance is None and any(map(dataclasses.is_dataclass, _members(annotation))):
                return f"'{key}' cannot be set because '{parent}' is none in this recipe"
            return f"unknown setting '{key}': '{parent}' is a single value" + _suggestion(key, known)
        if part not in {field.name for field in _fields(instance)}:
            return f"unknown setting '{key}'" + _suggestion(key, known)
        annotation, instance = _annotations(type(instance))[part], getattr(instance, part)
    if dataclasses.is_dataclass(instance) and type(None) not in _members(annotation):
        inside = ", ".join(name for name in known if name.startswith(f"{key}."))
        return f"'{key}' is a group of settings: set one of {inside}"
    return None


def _suggestion(key: str, known: Sequence[str]) -> str:
    """In brackets, the nearest known key, by the whole key or by its last part; if none is near, all keys."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        last = key.rpartition(".")[2]
        by_last: dict[str, str] = {}
        for name in known:
            by_last.setdefault(name.rpartition(".")[2], name)
        near = [by_last[match] for match in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})"


def _rebuild(instance: Any, tree: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """A copy of dataclass `instance` with the texts of `tree` read in; problems are added to `problems`."""
    annotations = _annotations(type(instance))
    before = len(problems)
    values = {}
    for name, branch in tree.items():
        if isinstance(branch, dict):
            values[name] = _rebuild(getattr(instance, name), branch, f"{where}{name}.", problems)
        else:
            try:
                values[name] = _parse(branch, annotations[name])
            except _Unfit as error:
                problems.append(f"{where}{name}: {error}")
    if not values or len(problems) > before:
        return instance
    try:
        return dataclasses.replace(instance, **values)
    except ValueError as error:
        problems.append(f"{where.rstrip('.')}: {error}" if where else str(error))
        return instance


def _parse(text: str, annotation: Any) -> Any:
    """Read the text of a flag as `annotation` asks; raises _Unfit."""
    # The strictest member first: a text that reads as a number is the number, even where any string would do.
    for member in sorted(_members(annotation), key=_strictness):
        try:
            return _converted(_read(text, member), member)
        except ValueError:
            continue
    raise _Unfit(f"expected {describe(annotation)}, got '{text}'")


def _read(text: str, annotation: Any) -> Any:
    """The JSON data that `text` stands for where one plain `annotation` is wanted; raises ValueError."""
    origin = typing.get_origin(annotation)
    if annotation in (str, Path):
        return text
    if annotation in (int, float):
        return annotation(text)
    if annotation is bool or annotation is type(None):
        words = {"true": True, "false": False, "none": None}
        return words.get(text.lower(), text)
    if origin is Literal:
        return {str(choice).lower(): choice for choice in typing.get_args(annotation)}.get(text.lower(), text)
    if origin is tuple and not text.lstrip().startswith("["):
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        return [_parse(part, inner) for part, inner in _paired(parts, annotation)]
    return json.loads(text)


def _strictness(annotation: Any) -> int:
    order = [Literal, bool, int, float, tuple, Path, str]
    kind = typing.get_origin(annotation) or annotation
    return order.index(kind) if kind in order else -1


# ---------------------------------------------------------------- round trip


def to_dict(value: Any) -> Any:
    """What `json.dumps` takes for a nested dataclass or a part of one: dictionaries, lists, plain values.

    Raises:
        TypeError: for a value that `from_dict` could not bring back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in _fields(value)}
    if isinstance(value, Mapping):
        return {_text_key(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"a setting cannot be {value}: JSON has no such number")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a setting cannot hold {value!r} of type {type(value).__name__}")


def from_dict(cls: type[T], data: Any, where: str = "", *, older: bool = False) -> T:
    """The `cls` (a nested dataclass) that `to_dict` turned into `data`; inverse of it, also through JSON.

    A field that `data` lacks is refused even if it has a default, since the file then does not say what was
    run. Of a union of dataclasses, the one member that `data` fits is taken.

    Args:
        where: what the settings came from, such as the path of the file, for the messages.
        older: a field that `data` lacks takes its default: an earlier version, which did not have the setting, may
            have written the file, and a new setting's default is what was done before there was one.

    Raises:
        UserError: with every unknown key, missing key and value of a wrong type, all together.
    """
    problems: list[str] = []
    value = _built(cls, data, "", problems, older)
    _refuse(problems, where)
    return typing.cast(T, value)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a dataclass or of plain data as canonical JSON, its keys sorted."""
    text = json.dumps(
        to_dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _built(cls: Any, data: Any, where: str, problems: list[str], older: bool = False) -> Any:
    """An instance of dataclass `cls` from JSON data, or None with the reasons added to `problems`."""
    if not isinstance(data, Mapping):
        problems.append(f"{where.rstrip('.') or 'settings'}: expected a group of settings, got {data!r}")
        return None
    before = len(problems)
    annotations = _annotations(cls)
    names = [field.name for field in _fields(cls)]
    defaults = {
        field.name
        for field in _fields(cls)
        if (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
    }
    for key in data:
        if key not in names:
            known = [where + name for name in names]
            problems.append(f"unknown setting '{where}{key}'" + _suggestion(f"{where}{key}", known))
    values = {}
    for name in names:
        if name not in data and older and name in defaults:
            continue
        if name not in data:
            problems.append(f"setting '{where}{name}' is missing")
            continue
        members = [member for member in _members(annotations[name]) if dataclasses.is_dataclass(member)]
        if len(members) == 1 and isinstance(data[name], Mapping):
            values[name] = _built(members[0], data[name], f"{where}{name}.", problems, older)
        else:
            try:
                values[name] = _converted(data[name], annotations[name], older)
            except _Unfit as error:
                problems.append(f"{where}{name}: {error}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(f"{where.rstrip('.')}: {error}" if where else str(error))
        return None


def _converted(value: Any, annotation: Any, older: bool = False) -> Any:
    """JSON data as `annotation` asks; raises _Unfit."""
    members = _members(annotation)
    if len(members) > 1:
        fits: list[Any] = []
        for member in sorted(members, key=_strictness):
            try:
                fits.append(_converted(value, member, older))
            except _Unfit:
                continue
        if not fits:
            raise _Unfit(f"expected {describe(annotation)}, got {value!r}")
        if len(fits) > 1 and isinstance(value, Mapping):
            kinds = " and ".join(type(fit).__name__ for fit in fits)
            raise _Unfit(f"fits {kinds} alike; give these classes a Literal field that tells them apart")
        return fits[0]
    origin = typing.get_origin(annotation)
    if dataclasses.is_dataclass(annotation):
        problems: list[str] = []
        built = _built(annotation, value, "", problems, older)
        return _no("; ".join(problems)) if problems else built
    if annotation is type(None) and value is None:
        return None
    if origin is Literal:
        for choice in typing.get_args(annotation):
            if value == choice and type(value) is type(choice):
                return choice
    if annotation in (bool, int, str) and type(value) is annotation:
        return value
    if annotation is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_converted(item, inner, older) for item, inner in _paired(value, annotation))
    if _is_mapping(origin) and isinstance(value, Mapping):
        inner = typing.get_args(annotation)[1]
        return {_text_key(key): _converted(item, inner, older) for key, item in value.items()}
    raise _Unfit(f"expected {describe(annotation)}, got {value!r}")


# ---------------------------------------------------------------- annotations


def describe(annotation: Any) -> str:
    """What a field takes, in words for a message or a help text: 'an integer', 'one of small, large'."""
    simple = {int: "an integer", float: "a finite number", bool: "true or false"}
    simple |= {str: "a text", Path: "a path", type(None): "none"}
    if annotation in simple:
        return simple[annotation]
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(describe(member) for member in members)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"a list in which each is {describe(inner[0])}"
        return f"a list of {len(inner)} ({', '.join(describe(part) for part in inner)})"
    if _is_mapping(origin):
        return f"a JSON object in which each value is {describe(inner[1])}"
    if dataclasses.is_dataclass(annotation):
        return f"a group of settings ({', '.join(field.name for field in _fields(annotation))})"
    raise TypeError(f"a setting cannot be annotated with {annotation}")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else the thing itself."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _paired(items: Sequence[Any], annotation: Any) -> Iterator[tuple[Any, Any]]:
    """Each item of a tuple with the annotation it must fit."""
    inner = typing.get_args(annotation)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return iter([(item, inner[0]) for item in items])
    if len(items) != len(inner):
        raise _Unfit(f"expected {describe(annotation)}, got {len(items)}")
    return zip(items, inner, strict=True)


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _annotations(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _text_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a setting must be text, not {key!r}")
    return key


def _no(message: str = "does not fit") -> Any:
    raise _Unfit(message)


def _refuse(problems: Sequence[str], where: str = "") -> None:
    """Raise one UserError that holds every problem, if there is any."""
    prefix = f"{where}: " if where else ""
    if len(problems) == 1:
        raise UserError(prefix + problems[0])
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"{prefix}{len(problems)} settings are wrong:{lines}")
