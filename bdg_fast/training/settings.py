"""From a file and ``key.sub=value`` to a :class:`TrainConfig`, and back to a file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..models.diffusers_unet import DiffusersConfig
from ..models.kinds import ModuleConfig, NetworkConfig, find_backbone, kind_of
from ..models.unet import UNetConfig
from .config import FREE, TrainConfig

C = TypeVar("C")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a YAML or JSON file and replace settings in it.

    Args:
        path: of the file.
        overrides: ``key.sub=value`` each, with the value in YAML: ``stages.bridging.steps=0``,
            ``data.degradations=[noise, jpeg]``.

    Raises:
        FileNotFoundError: no such file. ImportError: PyYAML is not installed. ValueError: no such setting, or a bad
            value, by its dotted name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of settings at {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text) if path.suffix == ".json" else _parsed(text, str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold settings by name, got {type(values).__name__}")
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator or not name:
            raise ValueError(f"settings must be given as key.sub=value, got {override!r}")
        _replace(values, name, json.loads(value) if _plain(value) else _parsed(value, name))
    return build(TrainConfig, values)


def _plain(text: str) -> bool:
    """Whether ``text`` is JSON, which needs no PyYAML."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parsed(text: str, source: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("PyYAML is not installed, which reads settings: pip install 'bdg-fast[training]'") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {error}") from None


def _replace(values: dict[str, Any], name: str, value: Any) -> None:
    *above, last = name.split(".")
    for part in above:
        inner = values[part] = {} if values.get(part) is None else values[part]  # nothing after a name in YAML
        if not isinstance(inner, dict):
            raise ValueError(f"{name}: {part} has no settings inside")
        values = inner
    values[last] = value


def build(kind: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """A dataclass of settings from plain values.

    Raises:
        ValueError: an unknown or missing name, or a bad value; the message begins with its dotted name.
    """
    hints = typing.get_type_hints(kind)
    names = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'settings'} must be settings by name, got {values!r}")
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
            raise ValueError(f"{_join(where, name)} is no setting{hint}")
    missing = [
        name
        for name, each in names.items()
        if name not in values and each.default is each.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{_join(where, missing[0])} must be given")
    found = {name: _converted(hints[name], value, _join(where, name)) for name, value in values.items()}
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from None


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _converted(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` has it; numbers may be written as texts that YAML does not take for numbers (1e-4)."""
    if hint is Any:
        return value
    if hint == NetworkConfig:
        return _network({} if value is None else value, where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        fitting = [part for part in inner if (typing.get_origin(part) is dict) == isinstance(value, Mapping)]
        return _converted(next(part for part in fitting or inner if part is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), {} if value is None else value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be settings by name, got {value!r}")
        return {str(name): _converted(inner[1], each, _join(where, name)) for name, each in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_converted(inner[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
        return value
    word = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}[hint]
    raise ValueError(f"{where} must be {word}, got {value!r}")


def _network(values: Any, where: str) -> NetworkConfig:
    """Of the kind that is named, by default our UNet; a user's own class is imported."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be settings by name, got {values!r}")
    kind = values.get("kind", "unet")
    rest = {name: value for name, value in values.items() if name != "kind"}
    if kind == "unet":
        return build(UNetConfig, rest, where)
    if kind == "diffusers":
        return build(DiffusersConfig, rest, where)
    try:
        backbone = find_backbone(kind)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    for name in rest.keys() - {"options"}:
        raise ValueError(f"{_join(where, name)} is no setting; those of {kind} are in {where}.options")
    options = build(backbone.config_class, rest.get("options") or {}, _join(where, "options"))
    return ModuleConfig(kind=backbone, options=options)


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """All settings, as JSON has them."""
    plain: dict[str, Any] = _as_json(config)
    return plain


def _as_json(value: Any) -> Any:
    """A setting or several; a class of networks by its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=kind_of))


def completed(old: Any, config: Any) -> Any:
    """Settings of a file as JSON has them, with those of ``config`` that it lacks at their defaults.

    An older version, which had no such setting, did what the default does.
    """
    if not isinstance(old, Mapping):
        return old
    if isinstance(config, Mapping):
        return {name: completed(value, config.get(name)) for name, value in old.items()}
    if not dataclasses.is_dataclass(config):
        return old
    found = {name: completed(value, getattr(config, name, None)) for name, value in old.items()}
    for each in dataclasses.fields(config):
        if each.name in found or each.name == "kind":  # which tells what the others are of
            continue
        if each.default is not dataclasses.MISSING:
            found[each.name] = _as_json(each.default)
        elif each.default_factory is not dataclasses.MISSING:
            found[each.name] = _as_json(each.default_factory())
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Dotted names of settings that differ between two runs' :func:`as_dict`, but for those of :data:`FREE`."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        full = _join(where, name)
        if full in FREE or old.get(name) == new.get(name):
            continue
        if isinstance(old.get(name), Mapping) and isinstance(new.get(name), Mapping):
            found += differences(old[name], new[name], full)
        else:
            found.append(full)
    return found
