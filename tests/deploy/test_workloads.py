"""What schemas cannot see in the pods: that their parts fit together."""

import re
from decimal import Decimal

import pytest

from services.config import Settings, load
from tests.deploy.chart import (
    WORKER_ROLES,
    Manifest,
    Rendered,
    changed,
    containers,
    environment,
    render,
    values_of,
)
from tests.deploy.settings_schema import CLASSES

_UNITS = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}


def _bytes(quantity: str) -> Decimal:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity).groups()  # type: ignore[union-attr]
    return Decimal(number) * (1 << _UNITS[unit])


def _settings(rendered: Rendered, role: str) -> Settings:
    """Return what the process of a role reads from its environment; raises if it would refuse it."""
    pod = rendered.get("Deployment", role)["spec"]["template"]
    variables = environment(containers(pod)[0])
    given = {name: value if isinstance(value, str) else "10.1.2.3" for name, value in variables.items()}
    return load(CLASSES[role], [], prog=f"tandem {role}", environment=given).settings


def _probes(container: Manifest) -> dict[str, Manifest]:
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


def test_the_processes_accept_their_environment(rendered: Rendered) -> None:
    for role in rendered.roles:
        pod = rendered.get("Deployment", role)["spec"]["template"]
        settings = _settings(rendered, role)
        names = [one["name"] for one in containers(pod)[0]["env"]]
        ports = {port["name"]: port["containerPort"] for port in containers(pod)[0]["ports"]}
        own = {f"TANDEM_{name.upper()}" for name in CLASSES[role].model_fields}

        assert len(names) == len(set(names))
        assert {name for name in names if name.startswith("TANDEM_")} <= own
        assert settings.port == ports["http" if role == "gateway" else "grpc"]  # type: ignore[attr-defined]
        assert settings.admin_port == ports["admin"]  # type: ignore[attr-defined]


def test_workers_advertise_the_address_of_their_pod(rendered: Rendered) -> None:
    for role in set(rendered.roles) - {"gateway"}:
        variables = environment(containers(rendered.get("Deployment", role)["spec"]["template"])[0])

        assert variables["TANDEM_HOST"] == "0.0.0.0"
        assert variables["TANDEM_ADVERTISE_HOST"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_both_pools_serve_the_same_model_over_the_same_transport(rendered: Rendered) -> None:
    common = ("TANDEM_MODEL", "TANDEM_DTYPE", "TANDEM_TRANSPORT", "TANDEM_SERVED_MODEL_NAME", "TANDEM_DEVICE")
    prefill, decode = (
        environment(containers(rendered.get("Deployment", role)["spec"]["template"])[0]) for role in WORKER_ROLES
    )

    assert [prefill.get(name) for name in common] == [decode.get(name) for name in common]


def test_settings_keep_all_their_digits() -> None:
    variables = environment(containers(render(values_of("cpu")).get("Deployment", "prefill")["spec"]["template"])[0])

    assert variables["TANDEM_MAX_QUEUED_TOKENS"] == "4194304"
    assert variables["TANDEM_KV_MEMORY_SHARE"] == "0.5"


def test_pods_have_time_to_drain(rendered: Rendered) -> None:
    for role in rendered.roles:
        pod = rendered.get("Deployment", role)["spec"]["template"]
        settings = _settings(rendered, role)
        command = containers(pod)[0]["lifecycle"]["preStop"]["exec"]["command"]
        draining_s = settings.drain_delay_s + settings.drain_timeout_s  # type: ignore[attr-defined]

        assert command[0] == "sleep"
        assert pod["spec"]["terminationGracePeriodSeconds"] >= int(command[1]) + draining_s + 30


def test_gateways_are_told_to_stop_first_and_redis_last(rendered: Rendered) -> None:
    by_role = {role: containers(pod)[0] for role, pod in rendered.pods() if role != "test"}
    told_after_s = {
        role: int(container["lifecycle"]["preStop"]["exec"]["command"][1]) for role, container in by_role.items()
    }
    order = [role for role in ("gateway", "decode", "prefill", "redis") if role in told_after_s]

    assert sorted(order, key=lambda role: told_after_s[role]) == order
    assert len(set(told_after_s.values())) == len(order)


def test_probes_ask_the_admin_port_and_only_liveness_is_slow_to_give_up(rendered: Rendered) -> None:
    for role in rendered.roles:
        container = containers(rendered.get("Deployment", role)["spec"]["template"])[0]
        startup, liveness = container["startupProbe"], container["livenessProbe"]

        assert {probe["httpGet"]["port"] for probe in _probes(container).values()} == {"admin"}
        assert startup["httpGet"]["path"] == "/readyz"
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
        assert liveness["httpGet"]["path"] == "/livez"
        assert liveness["failureThreshold"] >= 3
        assert not any("initialDelaySeconds" in probe for probe in _probes(container).values())


def test_a_gateway_without_workers_still_answers(rendered: Rendered) -> None:
    container = containers(rendered.get("Deployment", "gateway")["spec"]["template"])[0]

    assert container["readinessProbe"]["httpGet"]["path"] == "/livez"


def test_ports_have_short_names_and_protocols(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        for port in (port for container in containers(pod) for port in container.get("ports", [])):
            assert len(port["name"]) <= 15
            assert port["protocol"] == "TCP"
    for service in rendered.of_kind("Service"):
        assert all(port["protocol"] == "TCP" for port in service["spec"]["ports"])


def test_quantities_are_strings_and_fit(rendered: Rendered) -> None:
    for role, pod in rendered.pods():
        for container in containers(pod):
            resources = container["resources"]
            assert all(isinstance(value, str) for kind in resources.values() for value in kind.values()), role
            memory = _bytes(resources["limits"]["memory"])
            in_memory = [
                _bytes(volume["emptyDir"]["sizeLimit"])
                for volume in pod["spec"]["volumes"]
                if volume.get("emptyDir", {}).get("medium") == "Memory"
            ]
            assert sum(in_memory) <= memory / 2
            assert _bytes(resources["requests"]["memory"]) <= memory


def test_images_are_pinned(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        for container in containers(pod):
            assert re.search(r":[^/:@]+$|@sha256:[0-9a-f]{64}$", container["image"])
            assert not container["image"].endswith(":latest")


def test_pods_are_restricted(rendered: Rendered) -> None:
    for role, pod in rendered.pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] or role in (*WORKER_ROLES, "embed")


def test_users_are_numbers_except_on_openshift(rendered: Rendered) -> None:
    numbers = {"runAsUser", "runAsGroup", "fsGroup"}
    for _, pod in rendered.pods():
        given = numbers & set(pod["spec"]["securityContext"])
        assert given == (set() if rendered.values.get("openshift") else numbers)


def test_everything_mounted_exists_and_everything_that_exists_is_mounted(rendered: Rendered) -> None:
    for role, pod in rendered.pods():
        claims = rendered.get("StatefulSet", role)["spec"].get("volumeClaimTemplates", []) if role == "redis" else []
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | {one["metadata"]["name"] for one in claims}
        mounts = [mount for container in containers(pod) for mount in container["volumeMounts"]]

        assert {mount["name"] for mount in mounts} == volumes, role
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


def test_embedding_workers_are_there_only_if_enabled_and_know_nothing_of_the_chat_model() -> None:
    variables = environment(containers(render(values_of("gpu")).get("Deployment", "embed")["spec"]["template"])[0])

    assert "embed" not in {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in render({}).manifests}
    assert variables["TANDEM_EMBEDDING_MODEL"] == "BAAI/bge-m3"
    assert variables["TANDEM_DEVICE"] == "cuda:0"
    assert not {"TANDEM_MODEL", "TANDEM_DTYPE", "TANDEM_TRANSPORT", "HF_HUB_OFFLINE"} & set(variables)


def test_gpus_are_requested_and_replaced_before_they_are_taken_again() -> None:
    rendered = render(values_of("gpu"))
    for role in (*WORKER_ROLES, "embed"):
        deployment = rendered.get("Deployment", role)
        container = containers(deployment["spec"]["template"])[0]
        resources = container["resources"]

        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
        assert environment(container)["TANDEM_DEVICE"] == "cuda:0"
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("default", "smollm2"),
        ("cpu", "/models/SmolLM2-1.7B-Instruct"),
        ("external-redis", "/opt/models/llama"),
        ("gpu", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_the_model_comes_from_where_the_values_say(name: str, model: str) -> None:
    container = containers(render(values_of(name)).get("Deployment", "decode")["spec"]["template"])[0]
    variables = environment(container)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}

    assert variables["TANDEM_MODEL"] == model
    assert ("HF_HUB_OFFLINE" in variables) == model.startswith("/")
    assert ("/models" in mounts) == model.startswith("/models/")
    assert mounts.get("/models", {"readOnly": True})["readOnly"] is True


@pytest.mark.parametrize("as_json", [False, True])
def test_every_process_is_told_the_form_of_its_log(as_json: bool) -> None:
    rendered = render(changed(values_of("cpu"), "log.json", as_json))
    assert [_settings(rendered, role).log_json for role in rendered.roles] == [as_json] * 4  # type: ignore[attr-defined]
