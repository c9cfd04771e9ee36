"""Which format a model writes its tool calls in."""

from services.gateway.tools.deepseek import DEEPSEEK, DEEPSEEK_V3
from services.gateway.tools.format import ToolFormat
from services.gateway.tools.glm import GLM_45, GLM_47
from services.gateway.tools.harmony import Harmony
from services.gateway.tools.hermes import Hermes
from services.gateway.tools.llama import Llama
from services.gateway.tools.mistral import Mistral
from services.gateway.tools.mistral_named import MISTRAL_NAMED
from services.gateway.tools.qwen_coder import QWEN_CODER

DEFAULT: ToolFormat = Hermes()
FORMATS: tuple[ToolFormat, ...] = (
    DEFAULT,
    QWEN_CODER,
    GLM_45,
    GLM_47,
    Mistral(),
    MISTRAL_NAMED,
    DEEPSEEK,
    DEEPSEEK_V3,
    Llama(),
    Harmony(),
)


def format_named(name: str) -> ToolFormat:
    """Return a format by the name that settings use; there is one, since settings check it."""
    return next(each for each in FORMATS if each.name == name)


def format_of(template: str) -> ToolFormat | None:
    """Return the format that a chat template asks its model for, or None if we do not know it."""
    return next((each for each in FORMATS if each.is_used_by(template)), None)
