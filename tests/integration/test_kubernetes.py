"""The manifests of deploy/kubernetes, built by kustomize: what they say is valid, and what they refer to is there."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.cli.settings import table
from services.embedded import nats
from tests.debian import program

TOP = Path(__file__).parents[2]
FOLDER = TOP / "deploy" / "kubernetes"
PORTS = {"scheduler": 8471, "runner": 8472, "recorder": 8473, "api": 8470}
OF_OTHERS = [
    {"app.kubernetes.io/name": "nats"},  # the chart's, installed under this name
    {"cnpg.io/cluster": "database"},  # the operator's, by the name of the Cluster
    {"k8s-app": "kube-dns"},
]
"""Labels of pods that somebody else makes."""
MADE_BY_THE_OPERATOR = {"database-ca": {"ca.crt"}}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """Build them."""
    kubectl = program("kubernetes-client", "usr/bin/kubectl")
    built = subprocess.run([str(kubectl), "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module")
def values() -> Manifest:
    """Read what the chart of NATS is given."""
    found: Manifest = yaml.safe_load((FOLDER / "nats.values.yaml").read_text())
    return found


@pytest.fixture
def secrets(tmp_path: Path) -> list[Manifest]:
    """Make the secrets of two sites from stand-ins for the files that deploy/secrets.sh makes."""
    users = ("scheduler", "recorder", "api", "admin", "runner-home", "runner-office")
    roles = ("refresher", "refresher_recorder", "refresher_api", "refresher_grafana", "refresher_exporter")
    names = ["ca.crt", "nats-server.crt", "nats-server.key", "nats-accounts.conf"]
    for name in (*names, *(f"nats-{user}" for user in users), *(f"database-{role}" for role in roles)):
        (tmp_path / name).write_text(f"the secret {name}\n" * 10)
    (tmp_path / "sites").write_text("home\noffice\n")
    printed = _print_secrets(tmp_path)
    assert printed.returncode == 0, printed.stderr
    return list(yaml.safe_load_all(printed.stdout))


def _print_secrets(directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "REFRESHER_SECRETS_DIR": str(directory)}
    return subprocess.run(["sh", str(FOLDER / "secrets.sh")], env=environment, capture_output=True, text=True, timeout=30, check=False)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of these kinds."""
    return [each for each in manifests if each["kind"] in kinds]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Return every template of a pod."""
    return [each["spec"]["template"] for each in of_kind(manifests, "Deployment", "Job")]


def containers(pod: Manifest) -> list[Manifest]:
    """Return the containers of a pod, those that run first among them."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """Return what a container is told by its environment."""
    told: dict[str, str] = {}
    for source in container.get("envFrom", []):
        (config,) = (each for each in of_kind(manifests, "ConfigMap") if each["metadata"]["name"] == source["configMapRef"]["name"])
        told |= config["data"]
    return told | {each["name"]: each["value"] for each in container.get("env", [])}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_manifest_is_valid(version: str, manifests: list[Manifest], secrets: list[Manifest]) -> None:
    """Nothing is misspelt or of the wrong type, for Kubernetes of some years ago and of today."""
    checked = 0
    for each in [*manifests, *secrets]:
        if each["apiVersion"] != "postgresql.cnpg.io/v1":  # the operator's own kind: it checks that itself
            kubernetes_validate.validate(each, version, strict=True)
            checked += 1
    assert checked >= 30
    assert {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"} == {"refresher"}


def test_each_service_is_asked_for_its_health_on_its_own_port(manifests: list[Manifest]) -> None:
    """Alive, ready and started by the pages that every service has, on the port that is its default."""
    found = {}
    for deployment in of_kind(manifests, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        name = deployment["metadata"]["name"]
        assert container["args"] == ["run", name]
        assert [port["name"] for port in container["ports"]] == ["http"]
        for probe, page in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            assert container[probe]["httpGet"] == {"path": f"/health/{page}", "port": "http"}, name
        found[name] = container["ports"][0]["containerPort"]
    assert found == PORTS
    defaults = {variable: default for variable, default, _, _ in table()}
    assert {name: int(defaults[f"REFRESHER_{name.upper()}_PORT"]) for name in PORTS} == PORTS


def test_no_container_may_more_than_it_needs(manifests: list[Manifest]) -> None:
    """No root, no way to become it, nothing to write but a small /tmp, no token of the cluster, and bounds to its memory."""
    for pod in pods(manifests):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert container["image"] == "registry.example.org/refresher:0.1.0"


def test_what_selects_pods_finds_some(manifests: list[Manifest]) -> None:
    """Deployments, services, budgets, the autoscaler and the network's rules speak of pods and ports that are there."""
    ours = [pod["metadata"]["labels"] for pod in pods(manifests)]
    (cluster,) = of_kind(manifests, "Cluster")
    assert {"cnpg.io/cluster": cluster["metadata"]["name"]} in OF_OTHERS
    for each in of_kind(manifests, "Deployment", "PodDisruptionBudget"):
        (selected,) = _selected(each["spec"]["selector"], ours)
        assert selected["app.kubernetes.io/name"] == each["metadata"]["name"]
    for each in of_kind(manifests, "Service"):
        (selected,) = _selected({"matchLabels": each["spec"]["selector"]}, ours)
        assert each["spec"]["ports"] == [{"name": "http", "port": PORTS[each["metadata"]["name"]], "targetPort": "http"}]
    for each in of_kind(manifests, "HorizontalPodAutoscaler"):
        (target,) = (one for one in of_kind(manifests, "Deployment") if one["metadata"]["name"] == each["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"], "they would both decide how many"
    for selector in _selectors_of_policies(manifests):
        assert _selected(selector, [*ours, *OF_OTHERS]), selector


def _selectors_of_policies(manifests: list[Manifest]) -> Iterator[Manifest]:
    for policy in of_kind(manifests, "NetworkPolicy"):
        yield policy["spec"]["podSelector"]
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])):
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "podSelector" in peer:
                    yield peer["podSelector"]


def _selected(selector: Manifest, pods: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the labels of the pods that a selector finds; each name in a list must find one."""
    wanted = set(selector.get("matchLabels", {}).items())
    found = [labels for labels in pods if wanted <= set(labels.items())]
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        assert set(expression["values"]) <= {labels.get(expression["key"]) for labels in found}, expression
        found = [labels for labels in found if labels.get(expression["key"]) in expression["values"]]
    return found


def test_the_network_lets_through_what_is_needed_and_no_more(manifests: list[Manifest]) -> None:
    """All is denied first; whoever is told of NATS or of the database may reach it, is let in there, and nobody else."""
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for variable, out, into, port in (
        ("REFRESHER_NATS_URL", "to-nats", "nats", 4222),
        ("REFRESHER_DATABASE_URL", "to-database", "database", 5432),
    ):
        needing = {
            pod["metadata"]["labels"]["app.kubernetes.io/name"]
            for pod in pods(manifests)
            if any(variable in environment(container, manifests) for container in containers(pod))
        }
        assert needing == set(policies[out]["podSelector"]["matchExpressions"][0]["values"])
        (rule,) = policies[out]["egress"]
        assert rule["to"] == [{"podSelector": policies[into]["podSelector"]}]
        assert rule["ports"] == [{"port": port}]
        (rule,) = (each for each in policies[into]["ingress"] if "matchExpressions" in each["from"][0].get("podSelector", {}))
        assert needing == set(rule["from"][0]["podSelector"]["matchExpressions"][0]["values"])
        assert rule["ports"] == [{"port": port}]


def test_every_secret_and_file_that_is_named_is_there(manifests: list[Manifest], values: Manifest, secrets: list[Manifest]) -> None:
    """secrets.sh prints what the manifests mount; what the environment points to is mounted; and nothing is left over."""
    printed = {each["metadata"]["name"]: {*each["data"], *each.get("stringData", {})} for each in secrets} | MADE_BY_THE_OPERATOR
    used: set[str] = set()
    for pod in pods(manifests):
        (projected,) = (volume["projected"] for volume in pod["spec"]["volumes"] if "projected" in volume)
        files = set()
        for source in projected["sources"]:
            used.add(source["secret"]["name"])
            for item in source["secret"]["items"]:
                assert item["key"] in printed[source["secret"]["name"]]
                files.add(f"/run/secrets/{item['path']}")
        for container in containers(pod):
            assert {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True} in container["volumeMounts"]
            named = re.findall(r"/run/secrets/[a-z.-]+", json.dumps(environment(container, manifests)))
            assert named
            assert set(named) <= files
    (cluster,) = of_kind(manifests, "Cluster")
    roles = cluster["spec"]["managed"]["roles"]
    of_database = [cluster["spec"]["bootstrap"]["initdb"]["secret"], *(role["passwordSecret"] for role in roles)]
    assert all(printed[each["name"]] == {"username", "password"} for each in of_database)
    used |= {each["name"] for each in of_database}
    used |= {values["config"]["nats"]["tls"]["secretName"], *re.findall(r'"secretName": "([a-z-]+)"', json.dumps(values["podTemplate"]))}
    # the person's own, and the runners of the other site, whose manifest is a copy
    assert set(printed) - used == {"nats-admin", "nats-runner-office"}


def test_the_secrets_are_those_of_the_files(secrets: list[Manifest], tmp_path: Path) -> None:
    """Byte for byte; and a file that is missing is named, instead of a secret that is empty."""
    found = {each["metadata"]["name"]: each for each in secrets}
    decoded = subprocess.run(
        ["base64", "-d"], input=found["nats-api"]["data"]["password"], capture_output=True, text=True, check=True, timeout=10
    )
    assert decoded.stdout == (tmp_path / "nats-api").read_text()
    assert found["database-refresher-api"]["stringData"] == {"username": "refresher_api"}
    (tmp_path / "nats-api").unlink()
    printed = _print_secrets(tmp_path)
    assert printed.returncode == 1
    assert "nats-api" in printed.stderr


def test_every_variable_is_a_setting(manifests: list[Manifest]) -> None:
    """A setting that is renamed is renamed here, too: each is in the table of settings, or in deploy/compose.yml."""
    known = {variable for variable, *_ in table()} | set(re.findall(r"REFRESHER_[A-Z_]+", (TOP / "deploy" / "compose.yml").read_text()))
    for pod in pods(manifests):
        for container in containers(pod):
            assert set(environment(container, manifests)) <= known


def test_nats_is_a_cluster_of_three_that_keeps_each_stream_three_times(manifests: list[Manifest], values: Manifest) -> None:
    """The chart makes as many servers as the services count on, of the version that compose runs."""
    assert values["config"]["cluster"] == {"enabled": True, "replicas": 3}
    (config,) = of_kind(manifests, "ConfigMap")
    assert config["data"]["REFRESHER_NATS_REPLICAS"] == "3"
    compose = yaml.safe_load((TOP / "deploy" / "compose.yml").read_text())
    assert compose["services"]["nats"]["image"] == f"nats:{values['container']['image']['tag']}"


def test_the_server_takes_what_the_chart_is_told(values: Manifest, tmp_path: Path) -> None:
    """What is merged into the configuration is valid to a real nats-server, put together as the chart does it."""
    told = values["config"]
    merged = dict(told["merge"])
    included = merged.pop("00$include")
    (tmp_path / "nats-config").mkdir()
    (tmp_path / "nats-accounts").mkdir()
    (tmp_path / "nats-accounts" / "nats-accounts.conf").write_text(
        'accounts: { BUS: { jetstream: enabled, users: [{ user: "a", password: "b" }] } }\n'
    )
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=nats"),
            *("-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")),
        ],
        capture_output=True,
        check=True,
        timeout=30,
    )
    merged |= {
        "jetstream": {"store_dir": str(tmp_path / "store"), **told["jetstream"]["merge"]},
        "tls": {"cert_file": str(tmp_path / "tls.crt"), "key_file": str(tmp_path / "tls.key"), **told["nats"]["tls"]["merge"]},
    }
    path = tmp_path / "nats-config" / "nats.conf"
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in merged.items())
    path.write_text(f"include {included};\n" + re.sub('"<< (.*?) >>"', r"\1", lines))
    done = subprocess.run([nats.binary(), "-t", "-c", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pods_of_nats_keep_to_the_rules_of_the_namespace(values: Manifest, manifests: list[Manifest]) -> None:
    """Each container that the chart makes has what the level `restricted` asks for."""
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = values["podTemplate"]["merge"]["spec"]["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in ("container", "reloader", "promExporter"):
        context = values[container]["merge"]["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
