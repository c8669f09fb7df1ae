"""The manifest for Kubernetes fits the schemas of pods and of Ray Serve, and the example that it starts."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

FOLDER = Path(__file__).parents[2] / "examples" / "ray"

MANIFEST: dict[str, Any] = yaml.safe_load((FOLDER / "kuberay.yaml").read_text("utf-8"))
CLUSTER: dict[str, Any] = MANIFEST["spec"]["rayClusterConfig"]
SERVE: dict[str, Any] = yaml.safe_load(MANIFEST["spec"]["serveConfigV2"])
GROUPS = {"head": CLUSTER["headGroupSpec"], **{group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}}


@pytest.mark.parametrize("name", GROUPS)
def test_the_pods_fit_the_schema(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": GROUPS[name]["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_the_service_fits_ray() -> None:
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayService")
    (application,) = ServeDeploySchema.model_validate(SERVE).applications
    module, _, builder = str(application.import_path).partition(":")
    tree = ast.parse((FOLDER / f"{module}.py").read_text("utf-8"))
    assert {builder, "Digits"} <= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert [deployment.name for deployment in application.deployments] == ["Digits"]


def test_the_versions_are_one() -> None:
    version = CLUSTER["rayVersion"]
    for group in GROUPS.values():
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f":{version}")
    assert ray.__version__.split(".")[0] == version.split(".")[0]


def test_ray_is_told_of_as_many_npus_as_the_pod_has() -> None:
    group = GROUPS["npu"]
    told = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))["NPU"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    (given,) = (int(count) for name, count in limits.items() if name.startswith("huawei.com/"))
    assert told == given
    (deployment,) = SERVE["applications"][0]["deployments"]
    most = deployment["autoscaling_config"]["max_replicas"] * SERVE["applications"][0]["args"]["devices"]
    assert most <= told * group["maxReplicas"]
