"""``tandem config``: values, origins and masked secrets."""

from pathlib import Path

from services.cli.settings import ChatSettings, KeysSettings
from services.cli.show_config import settings_table
from services.config import load


def test_every_value_stands_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "tandem.yaml"
    file.write_text("chat:\n  model: m\n")
    loaded = load(
        ChatSettings,
        ["--proof"],
        prog="tandem chat",
        config_file=file,
        environment={"TANDEM_TIMEOUT_S": "3", "TANDEM_API_KEY": "sk-very-secret"},
    )
    rows = [line.split(maxsplit=2) for line in settings_table(loaded).splitlines()]
    assert [row[0] for row in rows] == list(ChatSettings.model_fields)
    assert ["model", "m", f"file {file}: chat.model"] in rows
    assert ["proof", "true", "command line --proof"] in rows
    assert ["timeout_s", "3.0", "environment TANDEM_TIMEOUT_S"] in rows
    assert ["max_tokens", "none", "default"] in rows
    assert ["api_key", "**********", "environment TANDEM_API_KEY"] in rows


def test_passwords_in_urls_are_masked() -> None:
    loaded = load(KeysSettings, ["--redis-url", "redis://user:pass@host:1/0"], prog="tandem keys list", environment={})
    table = settings_table(loaded)
    assert "redis://user:***@host:1/0" in table
    assert "pass@" not in table
