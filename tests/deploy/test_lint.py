"""What Helm and the Kubernetes schemas say about the chart."""

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.chart import CHART, OLDEST_KUBERNETES, VALUES_FILES, Finding, Rendered, lint, values_of

NEWEST_KUBERNETES = kubernetes_validate.latest_version().rpartition(".")[0]
_NO_ICON = Finding(1, "Chart.yaml", "icon is recommended")


@pytest.mark.parametrize("name", VALUES_FILES)
def test_the_strict_linter_finds_nothing(name: str) -> None:
    assert lint(values_of(name)) == [_NO_ICON]


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
def test_every_object_is_valid(rendered: Rendered, version: str) -> None:
    for manifest in rendered.manifests:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_schemas_refuse_unknown_fields(rendered: Rendered) -> None:
    gateway = rendered.get("Deployment", "gateway")
    wrong = {**gateway, "spec": {**gateway["spec"], "replica": 1}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST_KUBERNETES, strict=True)


def test_the_chart_says_the_oldest_version_and_depends_on_nothing() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert about["kubeVersion"] == f">={OLDEST_KUBERNETES}.0-0"
    assert "dependencies" not in about
    assert not (CHART / "charts").exists()


def test_every_values_file_is_checked() -> None:
    assert {path.name for path in (CHART / "ci").iterdir()} == {f"{name}-values.yaml" for name in VALUES_FILES}
