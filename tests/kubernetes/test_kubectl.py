"""kubectl itself reads the manifests as we do: same YAML, same kinds. Where there is a kubectl.

Even its client-side dry run asks an API server which kinds there are; a small one here knows these and nothing else.
"""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.kubernetes.cases import CASES, GOLDEN, ROOT
from tests.kubernetes.test_cluster_files import OBJECTS

KINDS = {
    "v1": {"ConfigMap": "configmaps", "PersistentVolumeClaim": "persistentvolumeclaims", "Namespace": "namespaces",
           "Pod": "pods"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "ray.io/v1": {"RayJob": "rayjobs", "RayCluster": "rayclusters"},
    "kueue.x-k8s.io/v1beta2": {
        "ResourceFlavor": "resourceflavors", "ClusterQueue": "clusterqueues", "LocalQueue": "localqueues"
    },
}  # fmt: skip
WIDE = ("Namespace", "ResourceFlavor", "ClusterQueue")
"""Kinds without a namespace."""


def discovery(path):
    """What an API server says of its kinds, or None."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": api, "version": api.split("/")[1]} for api in KINDS if "/" in api]
        groups = [
            {"name": each["groupVersion"].split("/")[0], "versions": [each], "preferredVersion": each}
            for each in versions
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    api = path.removeprefix("/apis/").removeprefix("/api/")
    if api not in KINDS:
        return None
    resources = [
        {"name": plural, "kind": kind, "namespaced": kind not in WIDE, "verbs": ["get", "create", "patch"]}
        for kind, plural in KINDS[api].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        found = discovery(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        text = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory):
    """A function: file -> the objects that `kubectl apply --dry-run=client` would send."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("kubectl")
    (home / "config").write_text("{apiVersion: v1, kind: Config}\n")

    def apply(file):
        address = f"http://127.0.0.1:{server.server_port}"
        command = [program, "--server", address, "--kubeconfig", home / "config", "--cache-dir", home / "cache"]
        command += ["apply", "--dry-run=client", "--validate=false", "-o", "json", "-f", file]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        made = json.loads(ended.stdout)
        return made["items"] if made["kind"] == "List" else [made]

    yield apply
    server.shutdown()


def without_marks(made):
    """kubectl notes what it applied in an annotation."""
    made["metadata"].pop("annotations", None)
    return made


MANIFESTS = [GOLDEN / f"{case}.yaml" for case in CASES] + [ROOT / "cluster" / f"{name}.yaml" for name in OBJECTS]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_kubectl_reads_the_same_objects_as_this_project_does(kubectl, file):
    ours = list(yaml.safe_load_all(file.read_text()))
    assert [without_marks(made) for made in kubectl(file)] == [without_marks(made) for made in ours]
