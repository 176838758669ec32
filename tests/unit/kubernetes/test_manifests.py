"""The manifests of hooks/kubernetes fit Kubernetes' published schemas, each other, and cria's command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from cria.cli import cli
from cria.kubernetes.kubelet.checkpoint import TIMEOUT_SECONDS

HOOKS = Path(__file__).parents[3] / "hooks" / "kubernetes"
FILES = sorted(HOOKS.glob("*.yaml"))
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
KUBELET = "kubelet-configuration.yaml"  # not an object of the API: there is no schema of it


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((HOOKS / name).read_text()))


EVERY = [(path.name, manifest) for path in FILES for manifest in objects(path.name)]
OBJECTS = [
    pytest.param(manifest, id=f"{manifest['kind']}-{manifest['metadata']['name']}")
    for name, manifest in EVERY
    if name != KUBELET
]


def pods() -> Iterator[dict[str, Any]]:
    """Yield the pods of deployments, daemon sets and jobs."""
    for _, manifest in EVERY:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield spec["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


CONTAINERS = [pytest.param(c, id=c["name"]) for pod in pods() for c in containers(pod)]


def only(name: str, kind: str) -> Any:
    return next(manifest for manifest in objects(name) if manifest["kind"] == kind)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", OBJECTS)
def test_a_manifest_fits_the_published_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_find_a_mistake() -> None:
    manifest = only("engine.yaml", "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


@pytest.mark.parametrize("container", CONTAINERS)
def test_commands_of_cria_exist_with_their_options(container: dict[str, Any]) -> None:
    probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")]
    commands = [probe["exec"]["command"] for probe in probes if "exec" in probe]
    for program, *arguments in [container["command"], *commands]:
        if program == "cria":
            parse(arguments)


def parse(arguments: list[str]) -> None:
    """Read a command line as cria does, and run nothing. Raises click.UsageError."""
    context, command = click.Context(cli), cli
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(context, name)  # type: ignore[assignment]
        assert command is not None, name
    command.make_context("cria", arguments)


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_container_has_capabilities_that_it_does_not_need(container: dict[str, Any]) -> None:
    context = container["securityContext"]

    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context
    assert container["resources"]["limits"]["memory"]


def test_pods_share_nothing_of_their_node_but_the_directories_they_name() -> None:
    for pod in pods():
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert "automountServiceAccountToken" in pod
        paths = {volume.get("hostPath", {}).get("path") for volume in pod["volumes"]}
        assert paths <= {None, "/etc/criu", "/opt/cria", "/usr", "/var/lib/kubelet/checkpoints"}
        names = {volume["name"] for volume in pod["volumes"]}
        mounted = {m["name"] for container in containers(pod) for m in container["volumeMounts"]}
        assert mounted == names


def rights(name: str) -> list[tuple[str, str, str]]:
    """Return kind of the role, resource and verb of each right that is granted."""
    return [
        (manifest["kind"], resource, verb)
        for manifest in objects(name)
        for rule in manifest.get("rules", [])
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def test_the_rights_are_those_that_are_needed() -> None:
    assert sorted(rights("rbac.yaml")) == [
        ("ClusterRole", "nodes/checkpoint", "create"),
        ("Role", "pods", "get"),
        ("Role", "pods", "list"),
        ("Role", "pods/exec", "create"),
        ("Role", "pods/exec", "get"),
    ]
    assert rights("rbac-api-server.yaml") == [("ClusterRole", "nodes/proxy", "create")]


def test_rights_are_granted_to_the_account_that_the_job_has() -> None:
    account = only("rbac.yaml", "ServiceAccount")["metadata"]
    subject = {"kind": "ServiceAccount", **{key: account[key] for key in ("name", "namespace")}}
    roles = {m["metadata"]["name"] for _, m in EVERY if m["kind"].endswith("Role")}
    bindings = [m for _, m in EVERY if m["kind"].endswith("RoleBinding")]
    job = only("checkpoint-cronjob.yaml", "CronJob")

    assert {binding["roleRef"]["name"] for binding in bindings} == roles
    assert all(binding["subjects"] == [subject] for binding in bindings)
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], job["metadata"]["namespace"]) == ("cria", "cria")


def test_selectors_match_the_engine_s_labels() -> None:
    deployment, service = only("engine.yaml", "Deployment"), only("engine.yaml", "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    job = only("checkpoint-cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    near = job["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    command = job["spec"]["initContainers"][0]["command"]

    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert near[0]["labelSelector"]["matchLabels"] == labels == {"app": "vllm"}
    assert near[0]["namespaces"] == [deployment["metadata"]["namespace"]]
    assert "--selector=app=vllm" in command
    assert f"--namespace={deployment['metadata']['namespace']}" in command


def test_the_liveness_probe_outlasts_a_checkpoint() -> None:
    (engine,) = only("engine.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    probes = [engine[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    liveness = engine["livenessProbe"]
    patience = liveness["periodSeconds"] * (liveness["failureThreshold"] - 1)

    assert all("httpGet" in probe and "exec" not in probe for probe in probes)
    assert patience >= TIMEOUT_SECONDS
    assert engine["readinessProbe"]["failureThreshold"] == 1


def test_a_job_that_is_deleted_has_time_to_wait_for_its_dumps() -> None:
    job = only("checkpoint-cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]

    assert pod["terminationGracePeriodSeconds"] >= TIMEOUT_SECONDS
    assert f"--timeout={TIMEOUT_SECONDS}" in pod["initContainers"][0]["command"]
    assert job["activeDeadlineSeconds"] > TIMEOUT_SECONDS


def test_the_engine_s_sockets_are_in_its_archive_and_its_memory_has_room() -> None:
    pod = only("engine.yaml", "Deployment")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert not any(path == "/tmp" or path.startswith("/tmp/") for path in mounts)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
