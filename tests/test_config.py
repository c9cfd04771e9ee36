"""Precedence, provenance and refusals of ``services.config``."""

from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr

from services import config
from services.config import Loaded, Settings, Source, load
from services.errors import ConfigurationError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class SampleSettings(Settings):
    """A sample process.

    More about it, which the help leaves out.
    """

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on."""
    name: str | None = None
    """Name to use, 100% optional."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights."""
    colour: Colour = Colour.RED
    """Colour of the shed."""
    verify: bool = True
    """Check everything."""
    timeout_s: float = 2.5
    """Seconds to wait."""
    peers: tuple[str, ...] = ()
    """Peers to call."""
    limits: dict[str, int] = Field(default_factory=dict)
    """Limits by project."""
    home: Path = Path("~/sample")
    """Where to keep state."""
    api_key: SecretStr = SecretStr("hunter2")
    """Key to present."""


class RequiredSettings(Settings):
    """A process that cannot guess."""

    secret_file: Path
    """The secret."""


class OtherSettings(Settings):
    """Another process that shares the file."""

    num_wheels: int = 2
    """Wheels."""


FIELDS = list(SampleSettings.model_fields)
TEXTS = {
    "port": ("1", 1),
    "name": ("anna", "anna"),
    "dtype": ("float32", "float32"),
    "colour": ("blue", Colour.BLUE),
    "verify": ("false", False),
    "timeout_s": ("9", 9.0),
    "peers": ("a, b", ("a", "b")),
    "limits": ('{"x": 3}', {"x": 3}),
    "home": ("/h", Path("/h")),
    "api_key": ("sesame", SecretStr("sesame")),
}


@pytest.fixture(autouse=True)
def _two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        config,
        "SETTINGS_CLASSES",
        {"sample": f"{__name__}:SampleSettings", "other": f"{__name__}:OtherSettings"},
    )


def load_sample(
    *argv: str, environment: dict[str, str] | None = None, config_file: Path | None = None
) -> Loaded[SampleSettings]:
    return load(SampleSettings, argv, prog="tandem sample", config_file=config_file, environment=environment or {})


def write(folder: Path, text: str) -> Path:
    path = folder / "tandem.yaml"
    path.write_text(text)
    return path


def test_defaults_hold_when_nothing_is_given() -> None:
    loaded = load_sample()
    assert loaded.settings == SampleSettings()
    assert {origin.source for origin in loaded.provenance.values()} == {Source.DEFAULT}
    assert list(loaded.provenance) == FIELDS


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_set_in_the_environment(field: str) -> None:
    text, value = TEXTS[field]
    loaded = load_sample(environment={f"TANDEM_{field.upper()}": text})
    assert getattr(loaded.settings, field) == value
    assert str(loaded.provenance[field]) == f"environment TANDEM_{field.upper()}"


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_set_on_the_command_line(field: str) -> None:
    text, value = TEXTS[field]
    option = "--" + field.replace("_", "-")
    argv = ["--no-verify"] if field == "verify" else [option, text]
    loaded = load_sample(*argv)
    assert getattr(loaded.settings, field) == value
    assert str(loaded.provenance[field]) == f"command line {option}"
    assert [name for name, origin in loaded.provenance.items() if origin.source is not Source.DEFAULT] == [field]


def test_every_field_can_be_set_in_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "port: 1\nname: anna\ndtype: float32\ncolour: blue\nverify: false\ntimeout_s: 9\n"
        "peers: [a, b]\nlimits: {x: 3}\nhome: /h\napi_key: sesame\n",
    )
    loaded = load_sample(config_file=path)
    assert loaded.settings.model_dump() == {field: value for field, (_, value) in TEXTS.items()}
    assert loaded.provenance["port"].source is Source.FILE
    assert str(path) in str(loaded.provenance["port"])


def test_a_stronger_source_wins_and_a_missing_option_never_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 1\ntimeout_s: 1\nname: file\n")
    environment = {"TANDEM_PORT": "2", "TANDEM_TIMEOUT_S": "2"}
    loaded = load_sample("--port", "3", environment=environment, config_file=path)
    assert (loaded.settings.port, loaded.settings.timeout_s, loaded.settings.name) == (3, 2.0, "file")
    sources = [loaded.provenance[name].source for name in ("port", "timeout_s", "name", "dtype")]
    assert sources == [Source.COMMAND_LINE, Source.ENVIRONMENT, Source.FILE, Source.DEFAULT]


def test_the_section_of_a_process_wins_over_the_top_level(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 1\ntimeout_s: 1\nsample:\n  port: 2\nother:\n  num_wheels: 3\n")
    loaded = load_sample(config_file=path)
    assert (loaded.settings.port, loaded.settings.timeout_s) == (2, 1.0)
    assert (loaded.provenance["port"].section, loaded.provenance["timeout_s"].section) == ("sample", None)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_named_file_replaces_the_handed_in_one(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, "port: 5\n")
    argv = ["--config", str(path)] if how == "option" else []
    environment = {"TANDEM_CONFIG": str(path)} if how == "variable" else {}
    loaded = load_sample(*argv, environment=environment, config_file=tmp_path / "absent.yaml")
    assert loaded.settings.port == 5
    assert loaded.config_file == path


def test_none_unsets_an_optional_field_and_an_empty_variable_counts_as_not_given(tmp_path: Path) -> None:
    path = write(tmp_path, "name: file\nport: 7\n")
    loaded = load_sample("--name", "none", environment={"TANDEM_PORT": ""}, config_file=path)
    assert loaded.settings.name is None
    assert loaded.settings.port == 7


def test_home_is_expanded_in_defaults_and_values() -> None:
    assert load_sample().settings.home == Path.home() / "sample"
    assert load_sample("--home", "~/x").settings.home == Path.home() / "x"


def test_keys_of_other_processes_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "num_wheels: 3\n")
    assert load_sample(config_file=path, environment={"TANDEM_NUM_WHEELS": "4", "PATH": "/bin"}).settings.port == 8000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["--no-verfy"], "unknown option --no-verfy; did you mean --no-verify?"),
        (["--bogus"], "unknown option --bogus"),
        (["--port"], "--port: expected one argument"),
        (["stray"], "unexpected argument 'stray'"),
        (["--port", "many"], "port, from command line --port: Input should be a valid integer"),
        (["--port", "70000"], "less than or equal to 65535 (given: '70000')"),
        (["--dtype", "int8"], "dtype, from command line --dtype: expected one of bfloat16, float32 (given: 'int8')"),
        (["--colour", "green"], "expected one of red, blue"),
        (["--limits", "{"], "command line --limits: not valid JSON"),
    ],
)
def test_a_bad_command_line_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_sample(*argv)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TANDEM_PROT": "1"}, "unknown environment variable TANDEM_PROT; did you mean TANDEM_PORT?"),
        ({"TANDEM_VERIFY": "maybe"}, "verify, from environment TANDEM_VERIFY: expected one of true, false"),
        ({"TANDEM_GATEWAY_SERVICE_HOST": "10.0.0.1"}, "enableServiceLinks: false"),
        ({"TANDEM_CONFIG": "/nowhere.yaml"}, "cannot read the configuration file /nowhere.yaml"),
    ],
)
def test_a_bad_environment_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_sample(environment=environment)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "prot; did you mean port?"),
        ("sampel: {port: 1}", "sampel; did you mean sample?"),
        ("sample: {prot: 1}", "section 'sample': prot; did you mean port?"),
        ("sample: {num_wheels: 1}", "section 'sample': num_wheels"),
        ("sample: 3", "section 'sample' must be a mapping"),
        ("- 3", "must be a mapping"),
        ("port: [", "is not valid YAML"),
        ("port: many", "port, from file"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_sample(config_file=write(tmp_path, text))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigurationError, match=r"^unknown option --xyzzy$"):
        load_sample("--xyzzy")


def test_a_missing_value_says_how_to_give_it() -> None:
    with pytest.raises(ConfigurationError, match=r"secret_file is not set: give --secret-file, TANDEM_SECRET_FILE or"):
        load(RequiredSettings, [], prog="tandem required", environment={})


def test_a_secret_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_sample(config_file=write(tmp_path, "api_key: 123456"))
    assert "api_key, from file" in str(refusal.value)
    assert "123456" not in str(refusal.value)


def test_several_problems_stand_in_one_line() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_sample("--port", "x", "--timeout-s", "y")
    assert str(refusal.value).count("from command line") == 2


def test_help_lists_every_field_with_docstring_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        load_sample("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert leaving.value.code == 0
    for name, field in SampleSettings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert f"TANDEM_{name.upper()}]" in text
        assert (field.description or "absent") in text
    assert "[default: 8000; TANDEM_PORT]" in text
    assert "--no-verify" in text
    assert "hunter2" not in text
    assert "A sample process." in text
    assert "which the help leaves out" not in text


def test_settings_are_frozen_and_construction_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PORT", "1")
    settings = SampleSettings()
    assert settings.port == 8000
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_load_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PORT", "1")
    assert load(SampleSettings, [], prog="tandem sample").settings.port == 1
