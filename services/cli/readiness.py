"""When a starting cluster can serve, and what its owner is told then."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services.cli.plan import Plan
from services.cluster.registry import Role


class ReadinessProbe:
    """Asks the gateway of a starting cluster whether it can serve."""

    def __init__(self, base_url: str) -> None:
        self._client = httpx.AsyncClient(base_url=base_url, timeout=5.0, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def served_model(self, num_workers: int) -> str | None:
        """Return the model's name if the gateway knows ``num_workers`` and serves it; None while not.

        What the registry lists the gateway may know a moment later; until then it would answer without prefill.
        """
        with suppress(httpx.HTTPError):
            metrics = (await self._client.get("/metrics")).raise_for_status().text
            if _num_workers(metrics) < num_workers:
                return None
            if not (await self._client.get("/readyz")).is_success:
                return None
            models = (await self._client.get("/v1/models")).raise_for_status().json()["data"]
            return str(models[0]["id"]) if models else None
        return None


def _num_workers(metrics: str) -> int:
    """Return how many workers a gateway knows, by its metrics."""
    samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    known = [each for each in samples if each.name == "tandem_members" and each.labels["role"] != Role.EMBED.value]
    return int(sum(each.value for each in known))


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
