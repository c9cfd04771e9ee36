"""When a starting cluster can serve, and what its owner is told then."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from services.cli.plan import Plan
from services.cluster.registry import Registry
from services.errors import StateUnavailable


class ReadinessProbe:
    """Asks whether a starting cluster can serve."""

    def __init__(self, base_url: str, registry: Registry) -> None:
        self._registry = registry
        self._client = httpx.AsyncClient(base_url=base_url, timeout=5.0, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def served_model(self, num_workers: int) -> str | None:
        """Return the model's name if ``num_workers`` have joined and the gateway serves it; None while not."""
        with suppress(httpx.HTTPError, StateUnavailable):
            if len(await self._registry.members()) < num_workers:
                return None
            if not (await self._client.get("/readyz")).is_success:
                return None
            models = (await self._client.get("/v1/models")).raise_for_status().json()["data"]
            return str(models[0]["id"]) if models else None
        return None


def ready_text(base_url: str, model: str, plan: Plan, logs: Path) -> str:
    """Return what is printed when the cluster is ready."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": True}
    )
    lines = [
        "",
        f"Tandem serves {model} at {base_url}",
        "",
        *(f"  {worker.spec.name:<12}{worker.share}" for worker in plan.workers),
        f"  {'gateway':<12}{base_url}/v1",
        f"  {'logs':<12}{logs}",
        "",
        f"curl -N {base_url}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"  -d '{body}'",
        "",
        "`tandem chat` talks to it; Ctrl-C stops it.",
        "",
    ]
    return "\n".join(lines)
