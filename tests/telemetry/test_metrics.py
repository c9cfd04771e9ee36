import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.telemetry.metrics import (
    CLAIMS,
    PATHS,
    GatewayMetrics,
    WorkerMetrics,
    counter_values,
    process_registry,
)


@pytest.fixture(params=[GatewayMetrics, WorkerMetrics])
def registry(request: pytest.FixtureRequest) -> CollectorRegistry:
    registry = CollectorRegistry()
    request.param(registry)
    return registry


def test_every_name_begins_with_tandem_and_has_a_description(registry: CollectorRegistry) -> None:
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len(families) >= 15
    assert all(family.name.startswith("tandem_") and family.documentation for family in families)


def test_every_path_counts_from_zero(registry: CollectorRegistry) -> None:
    for path in PATHS:
        assert registry.get_sample_value("tandem_requests_total", {"path": path}) == 0
        assert registry.get_sample_value("tandem_requests_total", {"path": path}) is not None


def test_holders_do_not_share_anything() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    WorkerMetrics(first).stale_notices.inc()
    WorkerMetrics(second)
    assert first.get_sample_value("tandem_stale_notices_total") == 1
    assert second.get_sample_value("tandem_stale_notices_total") == 0


def test_the_ledger_is_published_by_claim() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry).set_ledger({claim: index for index, claim in enumerate(CLAIMS)})
    assert [registry.get_sample_value("tandem_kv_blocks", {"claim": claim}) for claim in CLAIMS] == [0, 1, 2, 3, 4, 5]


def test_counters_are_told_with_their_labels_and_nothing_else_is() -> None:
    registry = process_registry()
    metrics = WorkerMetrics(registry)
    metrics.requests.labels(path="pd").inc(2)
    metrics.transferred_bytes.labels(transport="tcp", direction="sent").inc(1024)
    metrics.running.set(7)
    values = counter_values(registry)
    assert values['tandem_requests{path="pd"}'] == 2
    assert values['tandem_transferred_bytes{direction="sent",transport="tcp"}'] == 1024
    assert values["tandem_steps"] == 0
    assert all(name.startswith("tandem_") for name in values)
    assert not any("running" in name or "seconds" in name or "created" in name for name in values)


def test_the_process_registry_tells_of_the_process() -> None:
    assert process_registry().get_sample_value("process_resident_memory_bytes")
