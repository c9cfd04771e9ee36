"""What schemas cannot see between the objects: selectors, names, policies and scaling."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.telemetry.metrics import GatewayMetrics, WorkerMetrics
from tests.deploy.chart import (
    RELEASE,
    REPOSITORY,
    WORKER_ROLES,
    Manifest,
    Rendered,
    changed,
    component,
    containers,
    environment,
    render,
    values_of,
)

_Labels = dict[str, str]


def _matches(selector: _Labels, pod: Manifest) -> bool:
    labels: _Labels = pod["metadata"]["labels"]
    return selector.items() <= labels.items()


def _selected(rendered: Rendered, selector: _Labels) -> set[str]:
    return {role for role, pod in rendered.pods() if _matches(selector, pod)}


def _selectors(rendered: Rendered) -> Iterator[tuple[str, _Labels]]:
    """Yield the role of every object that selects pods, and its selector."""
    for manifest in rendered.workloads + rendered.of_kind("PodDisruptionBudget"):
        yield component(manifest), manifest["spec"]["selector"]["matchLabels"]
    for manifest in rendered.of_kind("Service"):
        yield component(manifest), manifest["spec"]["selector"]
    for manifest in rendered.of_kind("NetworkPolicy"):
        yield component(manifest), manifest["spec"]["podSelector"]["matchLabels"]


def _secret_references(node: Any) -> Iterator[tuple[str, str]]:
    """Yield name and key of every reference to a Secret below ``node``."""
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]
        if "secretName" in node:
            for item in node["items"]:
                yield node["secretName"], item["key"]
        for child in node.values():
            yield from _secret_references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _secret_references(child)


def _allowed(rendered: Rendered, role: str) -> dict[str, set[str]]:
    """Return which components may reach which port of a role; ``*`` stands for all ports or everybody."""
    allowed: dict[str, set[str]] = {}
    for rule in rendered.get("NetworkPolicy", role)["spec"]["ingress"]:
        peers: set[str] = set() if "from" in rule else {"*"}
        for peer in rule.get("from", []):
            is_here = "namespaceSelector" not in peer
            peers |= _selected(rendered, peer["podSelector"]["matchLabels"]) if is_here else {json.dumps(peer)}
        for port in [one["port"] for one in rule.get("ports", [])] or ["*"]:
            allowed.setdefault(port, set()).update(peers)
    return allowed


def test_objects_select_the_pods_of_their_role_and_no_others(rendered: Rendered) -> None:
    for role, selector in _selectors(rendered):
        assert _selected(rendered, selector) == {role}


def test_releases_do_not_select_each_others_pods(rendered: Rendered) -> None:
    assert all(selector["app.kubernetes.io/instance"] == RELEASE for _, selector in _selectors(rendered))


def test_long_names_stay_valid() -> None:
    rendered = render({"fullnameOverride": "x" * 45})

    assert max(len(one["metadata"]["name"]) for one in rendered.manifests) <= 63
    # Its pods carry the name and a hash of ten characters in a label.
    assert max(len(one["metadata"]["name"]) for one in rendered.of_kind("StatefulSet")) <= 52


def test_services_lead_to_ports_that_exist(rendered: Rendered) -> None:
    pods = dict(rendered.pods())
    for service in rendered.of_kind("Service"):
        names = {port["name"] for one in containers(pods[component(service)]) for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for role in WORKER_ROLES:
        assert rendered.get("Service", role)["spec"]["clusterIP"] == "None"


def test_a_stateful_set_has_a_headless_service(rendered: Rendered) -> None:
    for one in rendered.of_kind("StatefulSet"):
        service = rendered.find("Service", one["spec"]["serviceName"])
        assert service is not None
        assert service["spec"]["clusterIP"] == "None"
        assert component(service) == component(one)


def test_replicas_are_rendered_unless_something_scales_the_pool(rendered: Rendered) -> None:
    scaled = {component(one) for one in rendered.of_kind("HorizontalPodAutoscaler")}

    assert scaled == (set(rendered.roles) if "autoscaling" in str(rendered.values) else set())
    for role in rendered.roles:
        assert ("replicas" in rendered.get("Deployment", role)["spec"]) == (role not in scaled)


def test_each_pool_has_replicas_and_resources_of_its_own() -> None:
    values = values_of("cpu")
    rendered = render(values)
    deployments = {role: rendered.get("Deployment", role)["spec"] for role in rendered.roles}
    resources = {role: containers(spec["template"])[0]["resources"] for role, spec in deployments.items()}

    replicas = {role: spec["replicas"] for role, spec in deployments.items()}
    assert replicas == {"gateway": 2, "prefill": 2, "decode": 3, "embed": 2}
    assert [resources[role] for role in WORKER_ROLES] == [values[role]["resources"] for role in WORKER_ROLES]
    assert len({json.dumps(one, sort_keys=True) for one in resources.values()}) == len(rendered.roles)


@pytest.mark.parametrize("role", ("gateway", *WORKER_ROLES))
def test_one_pool_can_scale_alone(role: str) -> None:
    rendered = render({role: {"autoscaling": {"mode": "hpa", "cpuUtilization": 60}}})

    assert [component(one) for one in rendered.of_kind("HorizontalPodAutoscaler")] == [role]
    assert [one for one in rendered.roles if "replicas" not in rendered.get("Deployment", one)["spec"]] == [role]


def test_autoscalers_have_targets_of_their_own_and_room(rendered: Rendered) -> None:
    scalers = [one["spec"] for one in rendered.of_kind("HorizontalPodAutoscaler")]
    targets = [one["scaleTargetRef"]["name"] for one in scalers]

    assert len(set(targets)) == len(targets)
    for spec in scalers:
        assert rendered.find(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
        assert spec["metrics"]


def test_metrics_to_scale_by_exist() -> None:
    names: dict[str, set[str]] = {}
    for metrics, roles in ((GatewayMetrics, ("gateway",)), (WorkerMetrics, WORKER_ROLES)):
        registry = CollectorRegistry()
        metrics(registry)
        for role in roles:
            names[role] = {metric.name for metric in registry.collect()}
    documented = re.findall(r"`(tandem_\w+)`", (REPOSITORY / "docs/deploy.md").read_text())
    scaled = values_of("hpa")

    assert len(documented) >= 4
    assert set(documented) <= set().union(*names.values())
    for role in WORKER_ROLES:
        assert {metric["name"] for metric in scaled[role]["autoscaling"]["podMetrics"]} <= names[role]


def test_disruption_budgets_never_block_a_node(rendered: Rendered) -> None:
    assert {component(one) for one in rendered.of_kind("PodDisruptionBudget")} == set(rendered.roles)
    for budget in rendered.of_kind("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]


def test_referenced_secrets_are_made_or_named_in_the_values(rendered: Rendered) -> None:
    made = {(one["metadata"]["name"], key) for one in rendered.of_kind("Secret") for key in one["data"]}
    for name, key in set(_secret_references(rendered.manifests)):
        is_named = any(f"'{word}': '{name}'" in str(rendered.values) for word in ("name", "secretName"))
        assert (name, key) in made or is_named


def test_the_secret_is_made_only_if_it_is_not_given() -> None:
    given = changed(values_of("cpu"), "redis.internal.passwordSecret.name", "tandem-redis")

    assert len(render({}).of_kind("Secret")) == 1
    assert render(given).of_kind("Secret") == []


def test_the_cluster_secret_is_a_file_that_only_its_group_may_read(rendered: Rendered) -> None:
    for role in rendered.roles:
        spec = rendered.get("Deployment", role)["spec"]["template"]["spec"]
        volume = next(one for one in spec["volumes"] if one["name"] == "cluster-secret")
        assert volume["secret"]["defaultMode"] == 0o440
        assert spec["securityContext"].get("fsGroup") == (None if rendered.values.get("openshift") else 10001)


def test_certificates_are_mounted_where_the_settings_look_for_them() -> None:
    rendered = render(values_of("external-redis"))
    for role in rendered.roles:
        pod = rendered.get("Deployment", role)["spec"]["template"]
        container = containers(pod)[0]
        volume = next(one["secret"] for one in pod["spec"]["volumes"] if one["name"] == "tls")
        folder = next(one["mountPath"] for one in container["volumeMounts"] if one["name"] == "tls")
        files = {one["value"] for one in container["env"] if one["name"].startswith("TANDEM_TLS_")}

        assert (volume["secretName"], volume["defaultMode"]) == ("tandem-tls", 0o440)
        assert files == {f"{folder}/{item['path']}" for item in volume["items"]}
        assert len(files) == 3


def test_without_a_secret_there_is_no_tls() -> None:
    rendered = render(values_of("default"))

    assert "TANDEM_TLS" not in str(rendered.manifests)
    assert "tls.crt" not in str(rendered.manifests)


def test_every_component_has_an_account_without_a_token(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        account = rendered.find("ServiceAccount", pod["spec"]["serviceAccountName"])
        assert account is not None
        assert account["automountServiceAccountToken"] is False
    assert rendered.of_kind("Role") == rendered.of_kind("ClusterRole") == []


def test_redis_confirms_only_what_is_on_disk() -> None:
    redis = render({}).get("StatefulSet", "redis")["spec"]
    command = containers(redis["template"])[0]["command"][-1]

    assert redis["replicas"] == 1
    assert "--appendonly yes --appendfsync always" in command
    assert [one["metadata"]["name"] for one in redis["volumeClaimTemplates"]] == ["data"]


@pytest.mark.parametrize(
    ("limit", "max_memory"),
    [("2Gi", 1_288_490_188), ("1.5Gi", 966_367_641), ("1000M", 600_000_000), ("1073741824", 644_245_094)],
)
def test_redis_refuses_writes_before_its_memory_ends_and_a_file_takes_a_quarter(limit: str, max_memory: int) -> None:
    rendered = render(changed({}, "redis.internal.resources.limits.memory", limit))
    redis, gateway = (rendered.get(kind, role) for kind, role in (("StatefulSet", "redis"), ("Deployment", "gateway")))
    container = containers(redis["spec"]["template"])[0]
    variables = environment(containers(gateway["spec"]["template"])[0])

    assert container["resources"]["limits"]["memory"] == limit
    assert f"--maxmemory {max_memory} --maxmemory-policy noeviction" in container["command"][-1]
    assert int(variables["TANDEM_MAX_FILE_BYTES"]) == max_memory // 4


def test_a_given_size_of_files_stays_and_an_external_redis_has_none() -> None:
    given = render({"gateway": {"settings": {"max_file_bytes": 2**20}}})
    for rendered, size in ((given, "1048576"), (render(values_of("external-redis")), None)):
        gateway = rendered.get("Deployment", "gateway")["spec"]["template"]
        assert environment(containers(gateway)[0]).get("TANDEM_MAX_FILE_BYTES") == size


def test_an_external_redis_replaces_the_own_one() -> None:
    rendered = render(values_of("external-redis"))

    assert rendered.of_kind("StatefulSet") == []
    assert all("redis" not in manifest["metadata"]["name"] for manifest in rendered.manifests)


def test_policies_close_everything_but_what_is_needed() -> None:
    rendered = render({})

    assert _allowed(rendered, "gateway") == {"http": {"*"}}
    assert _allowed(rendered, "redis") == {"redis": {"gateway", "prefill", "decode", "test"}}
    for role in WORKER_ROLES:
        assert _allowed(rendered, role) == {"grpc": {"gateway"}, "*": {"prefill", "decode"}}


def test_only_gateways_reach_embedding_workers() -> None:
    rendered = render({"embed": {"enabled": True}})

    assert _allowed(rendered, "embed") == {"grpc": {"gateway"}}
    assert _allowed(rendered, "redis") == {"redis": {"gateway", "prefill", "decode", "embed", "test"}}
    assert _allowed(rendered, "decode") == {"grpc": {"gateway"}, "*": {"prefill", "decode"}}


def test_policies_open_the_api_and_admin_ports_to_configured_namespaces() -> None:
    values = values_of("cpu")
    rendered = render(values)
    api, admin = (json.dumps(values["networkPolicy"][name][0]) for name in ("apiFrom", "adminFrom"))

    assert _allowed(rendered, "gateway") == {"http": {api, "test"}, "admin": {admin}}
    assert _allowed(rendered, "decode")["admin"] == {admin}


def test_policies_name_ports_that_exist(rendered: Rendered) -> None:
    pods = dict(rendered.pods())
    policies = rendered.of_kind("NetworkPolicy")

    is_enabled = rendered.values.get("networkPolicy", {}).get("enabled", True)
    assert {component(one) for one in policies} == ({role for role in pods if role != "test"} if is_enabled else set())
    for policy in policies:
        names = {port["name"] for one in containers(pods[component(policy)]) for port in one["ports"]}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            assert {port["port"] for port in rule.get("ports", [])} <= names


def test_pods_are_spread_over_nodes(rendered: Rendered) -> None:
    for role in rendered.roles:
        pod = rendered.get("Deployment", role)["spec"]["template"]
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert _matches(spread["labelSelector"]["matchLabels"], pod)


def test_notes_warn_of_what_a_release_lacks() -> None:
    assert "WARNING" not in render({}).notes
    assert "every pod of this cluster can reach" in render(values_of("external-redis")).notes
    one_gpu = changed(changed(values_of("gpu"), "prefill.replicas", 1), "decode.replicas", 2)
    assert "prefill has one replica" in render(one_gpu).notes
