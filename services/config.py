"""Settings: read once, frozen. Command line > environment (``TANDEM_...``) > YAML file > defaults."""

import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.command_line import (
    ENVIRONMENT_PREFIX,
    allowed_values,
    display,
    is_collection,
    is_optional,
    is_secret,
    nearest,
    option_name,
    parse_options,
    variable_name,
)
from services.errors import ConfigurationError

SETTINGS_CLASSES: Mapping[str, str] = {
    "up": "services.cli.settings:UpSettings",
    "gateway": "services.gateway.settings:GatewaySettings",
    "prefill": "services.prefill.settings:PrefillSettings",
    "decode": "services.decode.settings:DecodeSettings",
    "embed": "services.embed.settings:EmbedSettings",
    "chat": "services.cli.settings:ChatSettings",
    "keys": "services.cli.settings:KeysSettings",
    "export": "services.cli.settings:ExportSettings",
    "import": "services.cli.settings:ImportSettings",
    "status": "services.cli.settings:StatusSettings",
    "drain": "services.cli.settings:DrainSettings",
}
"""Process kind (a section of the YAML file) to its settings class.

They are names, resolved only to tell a misspelt key from one meant for another process: one file and one
environment are shared by all kinds. No settings module may import torch.
"""


class Settings(BaseSettings):
    """Base of every process's settings; unknown keys are refused, every field is documented.

    Constructing one reads nothing but its arguments; ``load`` consults the sources.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return value.expanduser() if isinstance(value, Path) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keep only the arguments: ``load`` knows where every other value came from."""
        return (init_settings,)


class Source(Enum):
    """Where a value came from, weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Origin:
    """Where one field's value came from."""

    source: Source
    name: str = ""
    """The option, variable or key as the user wrote it."""
    section: str | None = None
    """The section of the YAML file; None at top level and for other sources."""

    def __str__(self) -> str:
        return f"{self.source.value} {self.name}".strip()


SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class Loaded(Generic[SettingsT]):
    """Settings and where each of them came from."""

    settings: SettingsT
    provenance: Mapping[str, Origin]
    """Origin by field name; every field has one."""
    config_file: Path | None = None


def load(
    settings_class: type[SettingsT],
    argv: Sequence[str],
    *,
    prog: str,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded[SettingsT]:
    """Read all sources for one process.

    Args:
        settings_class: what to fill.
        argv: the command line without the program's name.
        prog: ``tandem KIND``: stands in the help text, and its second word names the YAML section.
        config_file: a YAML file, unless ``--config`` or TANDEM_CONFIG names one.
        environment: read instead of the process's environment.

    Raises:
        ConfigurationError: names the field, its source and what is expected.
        SystemExit: ``--help`` was given and printed.
    """
    environment = os.environ if environment is None else environment
    kind = prog.split()[1] if " " in prog else prog
    given = parse_options(settings_class, argv, prog=prog)
    path = _config_path(given.pop("config", None), environment, config_file)
    layers = [
        _from_file(settings_class, kind, path),
        _from_environment(settings_class, environment),
        {name: (value, Origin(Source.COMMAND_LINE, option_name(name))) for name, value in given.items()},
    ]
    chosen = {name: pair for layer in layers for name, pair in layer.items()}
    settings = _validate(settings_class, chosen)
    default = Origin(Source.DEFAULT)
    provenance = {name: chosen[name][1] if name in chosen else default for name in settings_class.model_fields}
    return Loaded(settings, provenance, path)


def inherited_environment() -> dict[str, str]:
    """Return a copy of this process's environment, for its children."""
    return dict(os.environ)


def default_data_dir() -> Path:
    """Return where state lives: ``$XDG_DATA_HOME/tandem`` or ``~/.local/share/tandem``."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tandem"


_Layer = dict[str, tuple[Any, Origin]]
"""Values that one source gives, by field, and where exactly they stand."""


def _config_path(option: str | None, environment: Mapping[str, str], fallback: Path | None) -> Path | None:
    named = option or environment.get(variable_name("config"))
    return Path(named) if named else fallback


def _from_environment(settings_class: type[Settings], environment: Mapping[str, str]) -> _Layer:
    fields = {variable_name(name): name for name in settings_class.model_fields}
    given = [name for name, value in environment.items() if name.startswith(ENVIRONMENT_PREFIX) and value]
    others = [name for name in given if name not in fields and name != variable_name("config")]
    if others:
        _refuse_unknown("environment variable", others, map(variable_name, _fields_of_all_kinds()), _service_link)
    return {fields[name]: (environment[name], Origin(Source.ENVIRONMENT, name)) for name in given if name in fields}


def _service_link(name: str) -> str:
    if re.search(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP).*)?$", name):
        return "; Kubernetes adds such names for a Service: set enableServiceLinks: false"
    return ""


def _from_file(settings_class: type[Settings], kind: str, path: Path | None) -> _Layer:
    if path is None:
        return {}
    content = _read_yaml(path)
    own = content.get(kind)
    top = {name: value for name, value in content.items() if name not in SETTINGS_CLASSES and name != kind}
    others = [name for name in top if name not in settings_class.model_fields]
    if others:
        _refuse_unknown(f"key in {path}:", others, [*_fields_of_all_kinds(), *SETTINGS_CLASSES])
    layer = {
        name: (value, Origin(Source.FILE, f"{path}: {name}"))
        for name, value in top.items()
        if name in settings_class.model_fields
    }
    if own is None:
        return layer
    if not isinstance(own, dict):
        raise ConfigurationError(f"{path}: section '{kind}' must be a mapping of settings")
    _refuse_unknown(f"key in {path}, section '{kind}':", own, settings_class.model_fields)
    section = {name: (value, Origin(Source.FILE, f"{path}: {kind}.{name}", kind)) for name, value in own.items()}
    return {**layer, **section}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError(f"{path} must be a mapping of settings")
    return content


def _fields_of_all_kinds() -> set[str]:
    names = {"config"}
    for reference in SETTINGS_CLASSES.values():
        names |= set(settings_class_of(reference).model_fields)
    return names


def settings_class_of(reference: str) -> type[Settings]:
    """Return the class behind ``module:Class``.

    Raises:
        ConfigurationError: it is no settings class.
    """
    module, name = reference.split(":")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise ConfigurationError(f"{reference} is not a settings class")
    return found


def _refuse_unknown(
    what: str, names: Iterable[str], known: Iterable[str], hint: Callable[[str], str] | None = None
) -> None:
    accepted = set(known)
    for name in names:
        if name not in accepted:
            raise ConfigurationError(f"unknown {what} {name}{(hint and hint(name)) or nearest(name, accepted)}")


def _validate(settings_class: type[SettingsT], chosen: _Layer) -> SettingsT:
    fields = settings_class.model_fields
    values = {name: _from_text(value, fields[name].annotation, origin) for name, (value, origin) in chosen.items()}
    try:
        return settings_class(**values)
    except ValidationError as error:
        problems = [_describe_problem(settings_class, detail, chosen) for detail in error.errors(include_url=False)]
        raise ConfigurationError("; ".join(problems)) from None


def _from_text(value: Any, annotation: Any, origin: Origin) -> Any:
    """Give text from the command line or the environment the shape that YAML has by itself."""
    if origin.source is Source.FILE or not isinstance(value, str):
        return value
    if is_optional(annotation) and value.lower() == "none":
        return None
    if not is_collection(annotation):
        return value
    if not value.lstrip().startswith(("[", "{")):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{origin}: not valid JSON: {error}") from error


def _describe_problem(settings_class: type[Settings], detail: Mapping[str, Any], chosen: _Layer) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return f"{name} is not set: give {option_name(name)}, {variable_name(name)} or '{name}:' in the YAML file"
    origin = chosen[name][1] if name in chosen else Origin(Source.DEFAULT)
    field = settings_class.model_fields[name]
    given = "" if is_secret(field) else f" (given: {display(detail['input'])!r})"
    values = allowed_values(field.annotation)
    expected = f"expected one of {', '.join(values)}" if values else message
    return f"{name}, from {origin}: {expected}{given}"
