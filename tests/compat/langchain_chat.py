"""LangChain's standard tests of chat models: ChatOpenAI against a cluster with a small real model.

Run by ``python -m tests.compat langchain`` in a virtual environment with langchain-tests and langchain-openai.
"""

import os
from typing import Any, ClassVar

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

TIMEOUT_S = 120.0


class ChatOpenAITests(ChatModelIntegrationTests):
    """What the variants below have in common."""

    api: ClassVar[dict[str, Any]]
    """Says which API the client uses."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["TANDEM_COMPAT_MODEL"],
            "base_url": os.environ["TEST_API_BASE_URL"],
            "api_key": "none",
            "temperature": 0,
            "model_kwargs": {"parallel_tool_calls": False},  # a small model does not stop repeating its calls
            "max_tokens": 160,
            "timeout": TIMEOUT_S,
            "max_retries": 0,
            "stream_usage": True,
            **self.api,
        }

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestChatCompletions(ChatOpenAITests):
    """By /v1/chat/completions."""

    api: ClassVar[dict[str, Any]] = {"use_responses_api": False, "frequency_penalty": 1.0}
    """With the penalty, since a small model does not stop repeating itself."""


class TestResponses(ChatOpenAITests):
    """By /v1/responses, which know no penalties."""

    api: ClassVar[dict[str, Any]] = {"use_responses_api": True, "output_version": "responses/v1"}
