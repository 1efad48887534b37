"""Tier 3: the manifests keep to Kubernetes' schemas, and what they ask of a server is what the real one does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import Served

from quasar.runtime.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS

FOLDER = Path(__file__).resolve().parents[1] / "integrations" / "kubernetes"
OWN = {"keda.yaml", "inference-gateway.yaml"}
NAMES = {spec.name for spec in (*COUNTERS, *GAUGES, *HISTOGRAMS)}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def pod_of(name: str) -> dict[str, Any]:
    """The pod of a Deployment."""
    found: dict[str, Any] = next(one for one in documents(name) if one["kind"] == "Deployment")["spec"]["template"]
    return found


def test_the_folder_is_known() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {"Dockerfile", "serve.yaml", "triton.yaml", *OWN}


@pytest.mark.parametrize("name", ["serve.yaml", "triton.yaml", "inference-gateway.yaml"])
def test_manifests_keep_to_the_schemas(name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    own = [one for one in documents(name) if "." not in one["apiVersion"].partition("/")[0]]
    assert own
    for one in own:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", ["serve.yaml", "triton.yaml"])
def test_parts_of_a_manifest_fit_together(name: str) -> None:
    pod, service = pod_of(name), next(one for one in documents(name) if one["kind"] == "Service")
    labels = pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert service["spec"]["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} <= set(ports)
    assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) in ports.values()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["spec"]["volumes"]}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = next(int(re.sub(r"\D", "", arg)) for arg in container["args"] if "drain-seconds" in arg or "exit-timeout" in arg)
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause + drain
    (pool,) = [one for one in documents("inference-gateway.yaml") if one["kind"] == "InferencePool"]
    if name == "serve.yaml":
        assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert pool["spec"]["targetPorts"][0]["number"] == ports["http"]
        assert documents("keda.yaml")[0]["spec"]["scaleTargetRef"]["name"] == documents(name)[1]["metadata"]["name"]


def test_the_server_takes_the_arguments_and_answers_the_probes(demo_bundle: Path) -> None:
    container = pod_of("serve.yaml")["spec"]["containers"][0]
    bundle, *options = container["args"]
    assert Path(bundle).parent == Path(container["volumeMounts"][0]["mountPath"])
    assert f"--threads={container['resources']['limits']['cpu']}" in options
    assert (FOLDER / "Dockerfile").read_text().rstrip().endswith('ENTRYPOINT ["quasar-serve", "--host", "0.0.0.0"]')
    here = [option for option in options if not option.startswith("--threads=")]  # a manifest's machine may have more cores
    with Served(demo_bundle, *here, "--host", "0.0.0.0", "--threads=1") as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.http.get(container[probe]["httpGet"]["path"]).status_code == 200
        page = server.http.get("/metrics").text
    assert all(f"\n{name}{{" in page for name in asked_metrics())


def picker_file() -> dict[str, Any]:
    """The configuration of the endpoint picker."""
    (found,) = [one for one in documents("inference-gateway.yaml") if one["kind"] == "ConfigMap"]
    return found


def asked_metrics() -> set[str]:
    """Metrics that are scaled and routed by."""
    keda = documents("keda.yaml")[0]["spec"]["triggers"][0]["metadata"]["query"]
    picker = yaml.safe_load(picker_file()["data"]["config.yaml"])
    (extractor,) = [one for one in picker["plugins"] if one["type"] == "core-metrics-extractor"]
    (engine,) = extractor["parameters"]["engineConfigs"]
    return {*re.findall(r"quasar_\w+", keda), *(value for name, value in engine.items() if name.endswith("Spec"))}


def test_metrics_that_are_asked_for_are_known_to_every_server() -> None:
    assert len(asked_metrics()) == 3
    assert asked_metrics() <= NAMES


def test_the_share_of_a_replica_are_its_sequences() -> None:
    (threshold,) = [one["metadata"]["threshold"] for one in documents("keda.yaml")[0]["spec"]["triggers"]]
    assert f"--sequences={threshold}" in pod_of("serve.yaml")["spec"]["containers"][0]["args"]


def test_plugins_of_the_picker_are_named() -> None:
    picker = yaml.safe_load(picker_file()["data"]["config.yaml"])
    known = {plugin["type"] for plugin in picker["plugins"]}
    assert {plugin["pluginRef"] for profile in picker["schedulingProfiles"] for plugin in profile["plugins"]} <= known
