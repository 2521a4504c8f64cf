"""What the pods of a RayJob would be on hosts without Kubernetes: their variables, files and commands.

RayJob, ConfigMaps -> Pod for head, workers -> `set_up`, a script for a mount namespace, and `ray_start`
"""

import shlex
from dataclasses import dataclass

from dist_sft.config.kubernetes import mebibytes


@dataclass(frozen=True)
class Pod:
    """One pod, as the kubelet and KubeRay would make it.

    component    head or worker
    variables    of its Ray container; a secret is "" here
    secrets      variables whose values a Secret holds
    folders      where in the pod -> ("claim", name), ("memory", MiB), ("disk", MiB) or ("files", {name: text})
    start        parameters of `ray start`, without the address of the head
    stop         the command before it is stopped, if there is one
    group        id of the group to which the kubelet gives the claims
    rights       words to be put before a command: as whom it runs, and what it may never do
    """

    component: str
    variables: dict
    secrets: tuple
    folders: dict
    start: dict
    stop: list
    group: int
    rights: tuple

    def ray_start(self, address=None, **more):
        """Words of KubeRay's command; address: of a worker's head."""
        params = self.start | ({"address": address} if address else {}) | more
        words = [f"--{name.replace('_', '-')}={value}" for name, value in sorted(params.items())]
        return ["ray", "start", *(["--head"] if self.component == "head" else []), *words]

    def set_up(self, claims, scratch):
        """A script that lays the pod's folders out in a mount namespace.

        claims: where each claim's storage is on this machine; scratch: a folder for what is on the node's disk.
        """
        lines = ["set -e"]
        for number, (place, (kind, what)) in enumerate(self.folders.items()):
            here = f"{scratch}/{number}"
            if kind == "files":
                lines.append(f"mkdir -p {here}")
                lines += [f"printf %s {shlex.quote(text)} > {here}/{name}" for name, text in what.items()]
            elif kind == "claim":
                here = claims[what]
                lines.append(f"chgrp -R {self.group} {here}; chmod -R g+rwX {here}")
                lines.append(f"find {here} -type d -exec chmod g+s {{}} +")
            lines.append(f"mkdir -p {place}")
            if kind == "memory":
                lines.append(f"mount -t tmpfs -o size={what}m,mode=1777 tmpfs {place}")
                continue
            lines += [f"mkdir -p {here}", f"chmod 1777 {here}"] if kind == "disk" else []
            lines.append(f"mount --bind {here} {place}")
            lines += [f"mount -o remount,bind,ro {place}"] if kind == "files" else []
        return "\n".join(lines)


def pods(objects):
    """The head and every worker pod of a rendered RayJob."""
    files = {made["metadata"]["name"]: made["data"] for made in objects if made["kind"] == "ConfigMap"}
    cluster = objects[-1]["spec"]["rayClusterSpec"]
    found = [_pod("head", cluster["headGroupSpec"], files)]
    for group in cluster["workerGroupSpecs"]:
        found += [_pod("worker", group, files)] * group["replicas"]
    return found


def _pod(component, group, files):
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    volumes = {volume["name"]: _volume(volume, files) for volume in spec["volumes"]}
    limits, secrets = container["resources"]["limits"], [v["name"] for v in container["env"] if "valueFrom" in v]
    params = {name: shlex.split(value)[0] for name, value in group["rayStartParams"].items()}
    start = {"num-cpus": limits["cpu"], "memory": str(mebibytes(limits["memory"]) << 20)}
    if component == "head":
        start |= {"dashboard-host": "0.0.0.0", "port": "6379"}
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
    return Pod(
        component,
        {variable["name"]: variable.get("value", "") for variable in container["env"]},
        tuple(secrets),
        {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]},
        start | params,
        hook.get("command", []),
        spec["securityContext"]["fsGroup"],
        _rights(spec["securityContext"], container["securityContext"]),
    )


def _rights(pod, container):
    words = ["setpriv", f"--reuid={pod['runAsUser']}", f"--regid={pod['runAsGroup']}", f"--groups={pod['fsGroup']}"]
    dropped = ",".join(f"-{name.lower()}" for name in container["capabilities"]["drop"])
    words += [f"--inh-caps={dropped}", f"--bounding-set={dropped}"]
    return (*words, *([] if container["allowPrivilegeEscalation"] else ["--no-new-privs"]))


def _volume(volume, files):
    if "persistentVolumeClaim" in volume:
        return "claim", volume["persistentVolumeClaim"]["claimName"]
    if "configMap" in volume:
        return "files", files[volume["configMap"]["name"]]
    size = mebibytes(volume["emptyDir"]["sizeLimit"])
    return ("memory" if volume["emptyDir"].get("medium") == "Memory" else "disk"), size
