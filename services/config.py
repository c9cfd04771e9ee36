"""Settings: read once, frozen. Command line > environment (``TANDEM_...``) > YAML file > defaults."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Base of every process's settings; unknown keys are refused, every field is documented."""

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )
