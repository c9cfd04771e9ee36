"""What the chart's schema and its checks accept and refuse."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.deploy.chart import CHART, NAMESPACE, VALUES_FILES, changed, containers, environment, render, values_of
from tests.deploy.settings_schema import SCHEMA_FILE, definitions

Schema = dict[str, Any]


def _objects(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every schema of an object below ``schema``, with its path."""
    if schema.get("type") == "object":
        yield path, schema
    for name, child in schema.items():
        if isinstance(child, dict):
            yield from _objects(child, f"{path}/{name}")
        elif isinstance(child, list):
            for index, item in enumerate(child):
                if isinstance(item, dict):
                    yield from _objects(item, f"{path}/{name}/{index}")


def _schema() -> Schema:
    schema: Schema = json.loads(SCHEMA_FILE.read_text())
    return schema


def test_the_schema_is_closed_at_every_level() -> None:
    for path, schema in _objects(_schema()):
        if path == "/properties/global":  # a parent chart's
            continue
        rest = schema.get("additionalProperties")
        assert rest is False or (isinstance(rest, dict) and ("type" in rest or "$ref" in rest)), path


def test_the_settings_in_the_schema_are_those_of_the_processes() -> None:
    found = {name: _schema()["definitions"][name] for name in definitions()}

    assert found == definitions(), "run: python -m tests.deploy.settings_schema"


def test_every_value_has_a_default_and_a_place_in_the_readme() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()

    assert set(defaults) == set(_schema()["properties"])
    for role in ("gateway", "prefill", "decode", "embed"):
        properties = _schema()["properties"][role]["properties"]
        assert set(defaults[role]) == set(properties)
        assert all(f"`{name}" in readme for name in properties), role
    assert all(f"`{name}" in readme for name in defaults)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gatway", {}),
        ("prefill.replica", 2),
        ("prefill.replicas", -1),
        ("prefill.gpu.count", 2),
        ("prefill.resources.limits.memory", 4),
        ("prefill.settings.max_runing", 3),
        ("prefill.settings.max_running", 0),
        ("prefill.settings.push_timeout_s", "long"),
        ("decode.settings.progress_interval_s", 3),
        ("decode.settings.port", 1),
        ("decode.podLabels", {"app.kubernetes.io/component": "prefill"}),
        ("decode.podLabels", {"pod-template-hash": "1"}),
        ("shutdownStepSeconds", 0),
        ("fullnameOverride", "1st"),
        ("fullnameOverride", "my.tandem"),
        ("embed.enabled", "yes"),
        ("embed.settings.max_running", 3),
        ("embed.settings.device", "cuda:0"),
        ("decode.autoscaling.mode", "vpa"),
        ("decode.podDisruptionBudget.minAvailable", 1),
        ("decode.tolerations", [{"effekt": "NoSchedule"}]),
        ("decode.affinity", {"podAffinity": {"required": []}}),
        ("image.tag", "latest"),
        ("image.workerCuda.digest", "sha256:1"),
        ("model.source", "s3"),
        ("tls.secretName", "No Name"),
        ("tls.ca", "x"),
        ("gateway.settings.tls_ca_file", "/ca.crt"),
        ("redis.external.url", "redis://user:password@redis:6379"),
        ("networkPolicy.adminFrom", [{}]),
    ],
)
def test_wrong_values_are_refused_by_the_schema(path: str, value: object) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=path.split(".")[0]):
        render(changed({}, path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"decode": {"autoscaling": {"mode": "hpa", "minReplicas": 9, "cpuUtilization": 50}}},
            "minReplicas is greater",
        ),
        ({"decode": {"autoscaling": {"mode": "hpa"}}}, "set cpuUtilization or podMetrics"),
        (
            {"gateway": {"autoscaling": {"mode": "hpa"}, "resources": {"requests": {"cpu": None}}}},
            "needs gateway.resources.requests.cpu",
        ),
        ({"gateway": {"drainDelaySeconds": 5}}, "must be greater than gateway.drainDelaySeconds"),
        ({"prefill": {"gpu": {"count": 1}}}, "give both pools GPUs, or neither"),
        ({"decode": {"sharedMemory": "4096Mi"}}, "decode.sharedMemory is a part of decode.resources.limits.memory"),
        ({"model": {"source": "claim", "claim": "models", "path": "a/../../etc"}}, "must not contain"),
        ({"model": {"source": "image", "path": "/models/.."}}, "must not contain"),
        ({"clusterSecret": {"key": "redis-password"}}, "they would be one"),
        ({"redis": {"internal": {"resources": {"limits": {"memory": None}}}}}, "resources.limits.memory"),
        ({"redis": {"internal": {"persistence": {"size": "3.5Gi"}}}}, "persistence.size must be at least 1.8"),
        ({"gateway": {"settings": {"max_file_bytes": 2**31}}}, "more than Redis may hold"),
        ({"model": {"id": ""}}, "set model.id"),
        ({"model": {"source": "claim"}}, "set model.claim"),
        ({"model": {"source": "image", "path": "models/x"}}, "absolute path"),
        ({"redis": {"mode": "external"}}, "redis.external.url"),
        ({"redis": {"mode": "external", "external": {"url": "redis://r", "urlSecret": {"name": "u"}}}}, "either"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


@pytest.mark.parametrize(
    ("url", "rendered_url"),
    [
        ("redis://cache:6379/0", "redis://:$(REDIS_PASSWORD)@cache:6379/0"),
        ("rediss://tandem@cache:6380", "rediss://tandem:$(REDIS_PASSWORD)@cache:6380"),
    ],
)
def test_the_password_of_an_external_redis_goes_into_its_url(url: str, rendered_url: str) -> None:
    external = {"url": url, "passwordSecret": {"name": "redis"}}

    gateway = render({"redis": {"mode": "external", "external": external}}).get("Deployment", "gateway")

    names = [one["name"] for one in gateway["spec"]["template"]["spec"]["containers"][0]["env"]]
    values = {one["name"]: one.get("value") for one in gateway["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert values["TANDEM_REDIS_URL"] == rendered_url
    assert names.index("REDIS_PASSWORD") < names.index("TANDEM_REDIS_URL")


def test_a_url_with_its_password_comes_from_a_secret_alone() -> None:
    external = {"mode": "external", "external": {"urlSecret": {"name": "redis-url", "key": "all"}}}

    for _, pod in render({"redis": external}).pods():
        variables = environment(containers(pod)[0])
        assert variables["TANDEM_REDIS_URL"] == {"secretKeyRef": {"name": "redis-url", "key": "all"}}
        assert "REDIS_PASSWORD" not in variables


@pytest.mark.parametrize("role", ["gateway", "prefill", "decode"])
def test_no_variable_of_the_chart_can_be_given_a_second_time(role: str) -> None:
    rendered = [render(values_of(name)) for name in VALUES_FILES]
    pods = [one.get("Deployment", role)["spec"]["template"] for one in rendered]
    own = {name for pod in pods for name in environment(containers(pod)[0])} - {"UCX_TLS"}

    assert {"HOME", "REDIS_PASSWORD", "TANDEM_PORT"} <= own
    for name in own:
        with pytest.raises(helm_python.HelmValuesError, match="extraEnv"):
            render({role: {"extraEnv": [{"name": name, "value": "x"}]}})


def test_a_release_whose_name_cannot_name_a_service_needs_another() -> None:
    with pytest.raises(helm_python.HelmError, match="set fullnameOverride"):
        render({}, release="1st")

    assert render({"fullnameOverride": "first"}, release="1st").find("Service", "first-gateway")


def test_one_secret_may_hold_both_when_it_is_given() -> None:
    given = {"name": "mine", "key": "both"}
    rendered = render({"clusterSecret": given, "redis": {"internal": {"passwordSecret": given}}})

    assert rendered.of_kind("Secret") == []


def test_large_numbers_keep_their_digits() -> None:
    large = 12_000_000
    scaling = {
        "mode": "hpa",
        "maxReplicas": large,
        "cpuUtilization": 50,
        "scaleUp": {"stabilizationSeconds": 0, "pods": large, "periodSeconds": 60},
    }
    toleration = {"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": large}
    rendered = render(
        {
            "gateway": {"replicas": large, "settings": {"max_body_bytes": large}},
            "prefill": {"replicas": large, "podDisruptionBudget": {"maxUnavailable": large}},
            "decode": {"autoscaling": scaling, "tolerations": [toleration]},
        }
    )
    scaler = rendered.get("HorizontalPodAutoscaler", "decode")["spec"]
    gateway = rendered.get("Deployment", "gateway")["spec"]
    decode = rendered.get("Deployment", "decode")["spec"]["template"]["spec"]
    found = [
        *(rendered.get("Deployment", role)["spec"]["replicas"] for role in ("gateway", "prefill")),
        *(scaler["maxReplicas"], scaler["behavior"]["scaleUp"]["policies"][0]["value"]),
        rendered.get("PodDisruptionBudget", "prefill")["spec"]["maxUnavailable"],
        decode["tolerations"][0]["tolerationSeconds"],
    ]

    assert found == [large] * 6
    assert environment(containers(gateway["template"])[0])["TANDEM_MAX_BODY_BYTES"] == str(large)


def test_it_can_be_a_part_of_another_chart(tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 0.1.0\n")
    shutil.copytree(CHART, tmp_path / "charts/tandem")

    with helm_python.Chart.load(tmp_path) as parent:
        files = parent.render(
            {"global": {"region": "eu"}, "tandem": {"decode": {"replicas": 3}}}, name="demo", namespace=NAMESPACE
        )

    decode = yaml.safe_load(files["parent/charts/tandem/templates/decode.yaml"].split("---")[0])
    assert (decode["metadata"]["name"], decode["spec"]["replicas"]) == ("demo-tandem-decode", 3)


def test_an_install_and_a_package_can_be_made(tmp_path: Path) -> None:
    with (
        helm_python.Chart.load(CHART) as chart,
        helm_python.Config(storage_driver="memory", kube_apiserver="http://127.0.0.1:1") as config,
    ):
        release = config.install(chart, "demo", values_of("gpu"), namespace=NAMESPACE, dry_run="client")
    archive = helm_python.package(CHART, destination=tmp_path)

    assert "kind: Deployment" in release["manifest"]
    assert archive.endswith("tandem-0.1.0.tgz")
