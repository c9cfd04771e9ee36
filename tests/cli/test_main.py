"""The ``tandem`` command: help, versions, errors in one line, exit statuses, lazy imports."""

import subprocess
import sys

import pytest

from services.cli.__main__ import COMMANDS, main
from services.cli.failures import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, reporting_failures
from services.config import SETTINGS_CLASSES, settings_class_of
from services.errors import ConfigurationError, ModelRefused, StateUnavailable


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)
    assert main([]) == EXIT_REFUSED


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"tandem-serve": "1.2.3"}[name])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "tandem 1.2.3\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["upp"], "tandem: unknown command upp; did you mean up?"),
        (["up", "--pot", "1"], "tandem up: unknown option --pot; did you mean --port?"),
        (["up", "--port", "x"], "tandem up: port, from command line --port: "),
        (["config", "gatway"], "tandem config: unknown process gatway; did you mean gateway?"),
        (["keys"], "tandem keys: expected tandem keys create --project NAME | list | revoke ID"),
        (["keys", "create"], "tandem keys: expected "),
        (["keys", "list", "--data-dir", "/nonexistent"], "tandem keys: no cluster runs with the data folder"),
        (["status", "--data-dir", "/nonexistent"], "tandem status: no cluster runs with the data folder"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == EXIT_REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("kind", SETTINGS_CLASSES)
def test_every_process_has_documented_settings_and_help(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields = settings_class_of(SETTINGS_CLASSES[kind]).model_fields
    assert [name for name, field in fields.items() if not field.description] == []
    assert main(["config", kind]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(fields)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("c"), EXIT_REFUSED),
        (ModelRefused("m"), EXIT_REFUSED),
        (StateUnavailable("s"), EXIT_FAILED),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (ModuleNotFoundError("no", name="torch.nn"), EXIT_REFUSED),
    ],
)
def test_failures_have_their_exit_status(error: BaseException, status: int) -> None:
    assert reporting_failures("tandem x", lambda: _raise(error)) == status


def test_a_missing_module_of_ours_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        reporting_failures("tandem x", lambda: _raise(ModuleNotFoundError("no", name="services.nothing")))


def _raise(error: BaseException) -> int:
    raise error


def test_settings_and_commands_need_no_torch() -> None:
    modules = sorted({reference.split(":")[0] for reference in SETTINGS_CLASSES.values()})
    modules += [module for module, _ in COMMANDS.values() if module.startswith("services.cli.")]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit(bool({'torch', 'transformers', 'nixl'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
