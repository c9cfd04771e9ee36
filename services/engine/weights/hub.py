"""Models of the Hugging Face Hub, by id."""

from pathlib import Path
from typing import Any

from services.engine.weights.progress import Progress
from services.errors import ConfigurationError

NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "*.model",
)
UNNEEDED_FILES = ("*/*", "consolidated*")
"""Other formats of the same weights."""


def snapshot(model_id: str, *, cache_dir: Path, progress: Progress) -> Path:
    """Return the folder of a Hub model, downloading what is missing.

    Raises:
        ConfigurationError: it cannot be had; the text says what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of whichever HTTP library the client uses
    progress(f"looking for {model_id} on the Hugging Face Hub", None)
    try:
        folder = snapshot_download(
            model_id,
            cache_dir=cache_dir / "hub",
            allow_patterns=list(NEEDED_FILES),
            ignore_patterns=list(UNNEEDED_FILES),
            tqdm_class=_progress_class(model_id, progress),
        )
    except (http_error, OSError, EntryNotFoundError, ValueError) as error:
        raise ConfigurationError(_advice(model_id, error), param="model") from error
    return Path(folder)


def _advice(model_id: str, error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"The model {model_id} could not be downloaded from the Hugging Face Hub: {reason} Check the id and the "
        "network; for a private or gated model set HF_TOKEN; or give --model a local folder or a .gguf file."
    )


def _progress_class(model_id: str, progress: Progress) -> type[Any]:
    from tqdm.auto import tqdm

    class ProgressBar(tqdm):  # type: ignore[misc]
        """Reports downloaded bytes instead of drawing them."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._is_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            kwargs["disable"] = False
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            updated: bool | None = super().update(n)
            if self._is_bytes and self.total:
                progress(f"downloading {model_id}", min(1.0, self.n / self.total))
            return updated

    return ProgressBar


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
