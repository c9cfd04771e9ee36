"""Command-line options made from the fields of a settings class: one option a field, documented by its docstring."""

import argparse
import difflib
import types
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from services.errors import ConfigurationError

CONFIG_OPTION = "--config"
ENVIRONMENT_PREFIX = "TANDEM_"


def option_name(field: str) -> str:
    """Return the option of a field: ``--kv-memory-share`` for ``kv_memory_share``."""
    return "--" + field.replace("_", "-")


def variable_name(field: str) -> str:
    """Return the environment variable of a field: ``TANDEM_KV_MEMORY_SHARE`` for ``kv_memory_share``."""
    return ENVIRONMENT_PREFIX + field.upper()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the known name most like ``name``, else an empty string."""
    by_word = {_word(candidate): candidate for candidate in sorted(known)}
    matches = difflib.get_close_matches(_word(name), by_word, n=1, cutoff=0.6)
    return f"; did you mean {by_word[matches[0]]}?" if matches else ""


def _word(name: str) -> str:
    """Return what a person chose of a name: prefixes are alike in all of them."""
    return name.lstrip("-").removeprefix(ENVIRONMENT_PREFIX)


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line and its options, which come last; ``-`` alone is a word."""
    first_option = next((index for index, word in enumerate(argv) if word.startswith("-") and word != "-"), len(argv))
    return list(argv[:first_option]), list(argv[first_option:])


def parse_options(settings_class: type[BaseModel], argv: Sequence[str], *, prog: str) -> dict[str, Any]:
    """Return the options that were given, by field; ``config`` holds the path of ``--config``.

    Text stays text: the settings class validates it later, together with the other sources.

    Raises:
        ConfigurationError: an unknown option, a missing value or an argument that is no option.
        SystemExit: ``--help`` was given and printed.
    """
    parser = _build_parser(settings_class, prog)
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ConfigurationError(_describe_unknown(unknown[0], settings_class))
    return vars(given)


def allowed_values(annotation: Any) -> tuple[str, ...]:
    """Return the values of a ``Literal``, an enumeration or a flag (also when optional); empty if it has no list."""
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return tuple(str(value) for value in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(member.value) for member in annotation)
    if is_optional(annotation):
        return tuple(value for argument in get_args(annotation) for value in allowed_values(argument))
    return ()


def is_optional(annotation: Any) -> bool:
    """Tell whether ``None`` is a value of the annotation."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def is_collection(annotation: Any) -> bool:
    """Tell whether the annotation is a list, tuple, set or mapping (also when optional)."""
    if is_optional(annotation):
        return any(is_collection(argument) for argument in get_args(annotation))
    return (get_origin(annotation) or annotation) in (list, tuple, set, frozenset, dict)


def is_secret(field: FieldInfo) -> bool:
    """Tell whether the field's value must not be shown."""
    return field.annotation is SecretStr or SecretStr in get_args(field.annotation)


def _is_flag(annotation: Any) -> bool:
    return annotation is bool or (is_optional(annotation) and bool in get_args(annotation))


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message.replace("argument ", "", 1))


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _build_parser(settings_class: type[BaseModel], prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=(settings_class.__doc__ or "").strip().split("\n\n")[0],
        epilog="Command line > environment > YAML file > default. See docs/configuration.md.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(CONFIG_OPTION, metavar="FILE", help=f"YAML file with settings ({ENVIRONMENT_PREFIX}CONFIG)")
    for name, field in settings_class.model_fields.items():
        _add_option(parser, name, field)
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    if _is_flag(field.annotation):
        parser.add_argument(
            option_name(name), dest=name, action=argparse.BooleanOptionalAction, help=_describe(name, field)
        )
        return
    values = allowed_values(field.annotation)
    metavar = "{" + ",".join(values) + "}" if values else name.rsplit("_", 1)[-1].upper()
    parser.add_argument(option_name(name), dest=name, metavar=metavar, help=_describe(name, field))


def _describe(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    return f"{text} [{_describe_default(field)}; {variable_name(name)}]".strip().replace("%", "%%")


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "not set by default"
    if is_secret(field):
        return "default: hidden"
    return f"default: {display(value)}"


def display(value: object) -> str:
    """Return a setting's value as one would write it; secrets show as asterisks."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(display(item) for item in value) or "none"
    return str(value)


def _describe_unknown(argument: str, settings_class: type[BaseModel]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    option = argument.split("=", 1)[0]
    known = {option_name(name) for name in settings_class.model_fields} | {CONFIG_OPTION, "--help"}
    known |= {"--no-" + option[2:] for option in known}
    return f"unknown option {option}{nearest(option, known)}"
