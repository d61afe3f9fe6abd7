"""What every tool shares: typed dataclasses as the only schema of its arguments, and one line for a user's mistake.

A tool reads `--config file.yaml` and dotted overrides (`--optim.lr 3e-4`) through jsonargparse into a dataclass
(`parse_arguments`), and runs under `run_tool`, which turns a `MindLLMError` into `error: <one line>` and exit code 2.
"""

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import sys
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mindllm_engine import ranks
from mindllm_engine.errors import ConfigError, MindLLMError, OtherRankError

USER_ERROR_EXIT_CODE = 2

Schema = TypeVar("Schema")


def run_tool(main: Callable[[], None]) -> None:
    """Call `main` and turn a `MindLLMError` into `error: <one line>` and exit code 2.

    Under torchrun ranks that meet the same mistake print it once between them, those that meet another one print that
    too, and those that end because another rank failed stay silent (`ranks.is_mine_to_tell`). Exit codes are the same.
    """
    try:
        main()
    except MindLLMError as error:
        _tell(f"error: {printable(str(error))}", isinstance(error, OtherRankError))
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _has_other_ranks():
            ranks.is_mine_to_tell(str(error), of_another_rank=False)  # the traceback tells, and other ranks need not
            ranks.record_failure("".join(traceback.format_exception(error)))
            sys.excepthook(type(error), error, error.__traceback__)
            time.sleep(ranks.SECONDS_TO_STAY)
            sys.exit(1)
        raise


def _tell(line: str, of_another_rank: bool) -> None:
    """Print the line, unless another rank does."""
    if not _has_other_ranks():
        print(line, file=sys.stderr, flush=True)
        return
    if ranks.is_mine_to_tell(line, of_another_rank):
        print(line, file=sys.stderr, flush=True)
    ranks.record_failure(line)
    if not of_another_rank:
        time.sleep(ranks.SECONDS_TO_STAY)  # torchrun ends all ranks when the first one exits


def _has_other_ranks() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def printable(text: str) -> str:
    """A text as one line without control characters, which are escaped: names of files may hold any."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def parse_arguments(schema: type[Schema], description: str, argv: list[str] | None = None) -> Schema:
    """Command-line arguments as an instance of the dataclass `schema`.

    `--config FILE` (YAML) may be given, and any field as a dotted option, which wins over a file given before it.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or a missing value, before anything runs.
    """
    import jsonargparse

    argv = sys.argv[1:] if argv is None else argv
    _check_keys(schema, argv)
    parser = _parser(description)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file with any of the fields below")
    parser.add_class_arguments(schema)
    try:
        parsed = parser.instantiate(parser.parse_args(argv))
    except (jsonargparse.ArgumentError, jsonargparse.ParserError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(str(error), argv)) from error
    return _instance(schema, parsed)


def parse_mapping(schema: type[Schema], content: dict[str, Any], where: str) -> Schema:
    """A mapping, such as `dataclasses.asdict` gives, as an instance of the dataclass `schema`.

    Args:
        where: what the mapping is called in errors.

    Raises:
        ConfigError: as `parse_arguments`.
    """
    import jsonargparse

    _check_mapping(schema, content, prefix="", where=where, given=[])
    parser = _mapping_parser(typing.cast(Any, schema))
    try:
        parsed = parser.instantiate(parser.parse_object(content))
    except (jsonargparse.ArgumentError, jsonargparse.ParserError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(str(error), [f"--config={where}"])) from error
    return _instance(schema, parsed)


@functools.cache
def _mapping_parser(schema: type) -> Any:
    parser = _parser("")
    parser.add_class_arguments(schema)
    return parser


def _parser(description: str) -> Any:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.ArgumentParser(description=description, exit_on_error=False)


def _instance(schema: type[Schema], parsed: Any) -> Schema:
    return schema(**{field.name: parsed[field.name] for field in dataclasses.fields(typing.cast(Any, schema))})


def merge_mappings(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as one: where both have a key, `second` wins, and mappings are merged."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_mappings(merged[key], value) if both else value
    return merged


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first option, and the options."""
    first_option = next((n for n, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return arguments[:first_option], arguments[first_option:]


def config_to_yaml(config: Any) -> str:
    """A dataclass instance as YAML that `parse_arguments` reads back to an equal instance."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    try:
        content = _parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, a date such as 2026-99-99
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def _parse_yaml(text: str, where: str) -> Any:
    """What a text in YAML says. Raises yaml.YAMLError, and ConfigError for a key given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, where YAML would keep the last in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise ConfigError(f"{where}: the key {key} is given twice in one mapping; keep one")
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _refuse_repeated_keys(argv: list[str]) -> None:
    """Of mappings given as the value of an option, such as --data.sources '{web: a, web: b}'."""
    import yaml

    for option, value in zip(["", *argv], argv, strict=False):
        name, value = value.split("=", 1) if value.startswith("--") and "=" in value else (option, value)
        if name.startswith("--") and "." in name and value.lstrip().startswith(("{", "[")):
            with contextlib.suppress(yaml.YAMLError, ValueError):  # jsonargparse says what is wrong with it
                _parse_yaml(value, name.removeprefix("--"))


def _config_files(argv: list[str]) -> Iterator[str]:
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            yield argv[position + 1]
        elif argument.startswith("--config="):
            yield argument.removeprefix("--config=")


def _check_keys(schema: type, argv: list[str]) -> None:
    """Refuse unknown and missing keys by name, which jsonargparse reports without the nearest one or not at all."""
    files = list(_config_files(argv))
    options = [argument[2:].split("=")[0] for argument in argv if argument.startswith("--")]
    for path in files:
        # With several files one may complete another; jsonargparse has the last word then.
        given = options if len(files) == 1 else None
        _check_mapping(schema, read_yaml(path), prefix="", where=str(path), given=given)
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument[2:].split("=")[0]
        if name in ("config", "help", "print_config"):
            continue
        _check_option(schema, name)
    _refuse_repeated_keys(argv)


def _check_option(schema: type, name: str) -> None:
    expected: Any = schema
    parts = name.split(".")
    for depth, part in enumerate(parts):
        nested = _dataclass_in(expected)
        if nested is not None:
            fields = typing.get_type_hints(nested)
            part = part.removesuffix("+")
            if part not in fields:
                raise _unknown_key(part, fields, prefix="".join(p + "." for p in parts[:depth]), where="command line")
            expected = fields[part]
        else:
            value_type = _mapping_value(expected)
            if value_type is None:
                return
            expected = value_type


def _check_mapping(schema: type, content: dict[str, Any], prefix: str, where: str, given: list[str] | None) -> None:
    """Check the keys of a mapping and of those in it; `given` names the options that may complete it, None any."""
    fields = typing.get_type_hints(schema)
    for key, value in content.items():
        if key not in fields:
            raise _unknown_key(str(key), fields, prefix, where)
        for path, nested, mapping in _nested_mappings(fields[key], value, f"{prefix}{key}"):
            if not isinstance(mapping, dict):
                found = "nothing" if mapping is None else f"{type(mapping).__name__} {mapping!r}"
                raise ConfigError(f"{where}: {path}: expected a mapping of keys to values, found {found}")
            _check_mapping(nested, mapping, path + ".", where, given)
    if given is None:
        return
    for field in dataclasses.fields(schema):
        name = f"{prefix}{field.name}"
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not has_default and field.name not in content and not any(f"{o}.".startswith(f"{name}.") for o in given):
            raise ConfigError(f"{where}: missing key {name}; it has no default")


def _nested_mappings(expected: Any, value: Any, path: str) -> Iterator[tuple[str, type, Any]]:
    """The (path, dataclass, what stands there) triples directly under a field: itself, or the entries of its list or
    dictionary."""
    nested = _dataclass_in(expected)
    if nested is not None:
        if value is not None or type(None) not in typing.get_args(expected):
            yield path, nested, value
    elif isinstance(value, list):
        for item_type in typing.get_args(expected)[:1]:
            for position, item in enumerate(value):
                yield from _nested_mappings(item_type, item, f"{path}[{position}]")
    elif isinstance(value, dict):
        value_type = _mapping_value(expected)
        if value_type is not None:
            for key, item in value.items():
                yield from _nested_mappings(value_type, item, f"{path}.{key}")


def _without_none(expected: Any) -> list[Any]:
    """The alternatives of an optional or union type, `None` left out."""
    if isinstance(expected, types.UnionType) or typing.get_origin(expected) is typing.Union:
        return [part for part in typing.get_args(expected) if part is not type(None)]
    return [expected]


def _dataclass_in(expected: Any) -> type | None:
    for part in _without_none(expected):
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            return part
    return None


def _mapping_value(expected: Any) -> Any | None:
    for part in _without_none(expected):
        if typing.get_origin(part) is dict:
            return typing.get_args(part)[1]
    return None


def _unknown_key(key: str, fields: dict[str, Any], prefix: str, where: str) -> ConfigError:
    nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    advice = f"did you mean {prefix}{nearest[0]!s}?" if nearest else f"valid here: {', '.join(fields)}"
    return ConfigError(f"{where}: unknown key {prefix}{key}; {advice}")


def _one_line(message: str, argv: list[str]) -> str:
    """jsonargparse's report, which spans lines and repeats itself for nested optional types, as one line."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    expected = re.findall(
        r"(Expected an? .*?|Key \"[^\"]+\" is required.*?|.*is required.*?|invalid .*?)(?:\n|$)", message
    )
    expected = [part for part in expected if "NoneType" not in part or len(expected) == 1]
    where = ", ".join(_config_files(argv)) or "command line"
    if keys and "Not a valid subclass" in message and "Got value: {}" in message:
        return f"{where}: {'.'.join(keys[:1])}: expected mappings with one key at least, found an empty one"
    path: list[str] = []
    for key in keys:
        path = key.split(".") if key.startswith(".".join(path) + ".") or not path else [*path, *key.split(".")]
    if keys and expected:
        reason = expected[0].strip().rstrip(".").replace("<class '", "").replace("'>", "")
        return f"{where}: {'.'.join(path)}: {reason[0].lower()}{reason[1:]}"
    return f"{where}: {' '.join(message.split())}"
