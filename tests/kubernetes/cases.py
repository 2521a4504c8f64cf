"""Runs whose manifests are kept in golden/, and reviewed there."""

from pathlib import Path

import yaml

from dist_sft.config.load import load_config
from dist_sft.kubernetes.manifest import render
from dist_sft.kubernetes.text import as_documents
from dist_sft.run.opened import open_run

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]

BASE = {
    "run": {"name": "gsm8k", "dir": "runs/gsm8k"},
    "model": {"path": "models/Qwen3-8B"},
    "data": {"sources": ["data/gsm8k_train.jsonl"]},
    "train": {"samples_per_step": 256, "epochs": 2},
    "cluster": {"workers": 8},
    "deepspeed": {"zero_optimization": {"stage": 3}},
    "kubernetes": {"image": "registry.example.com/dist-sft:0.1.0", "ray_version": "2.60.0"},
}

CASES = {
    "cpu_debug": [
        "cluster={workers: 2, gpus_per_worker: 0}",
        "service.encoders=0",
        "kubernetes.worker={memory: 2Gi, shared_memory: 2Gi, scratch: 8Gi}",
        "kubernetes.head={cpus: 1, memory: 2Gi, shared_memory: 256Mi, scratch: 4Gi}",
    ],
    "one_node": [],
    "sixteen_nodes": [
        "run.name=Qwen3-8B on 128 GPUs",
        "cluster={workers: 128, cpus_per_worker: 4, max_failures: 10}",
        "tracking.wandb={project: sft}",
        "kubernetes.secrets={WANDB_API_KEY: {name: wandb, key: api-key}, HF_TOKEN: {name: hub, key: token}}",
        "kubernetes.worker={memory: 128Gi, shared_memory: 64Gi, scratch: 1Ti, "
        "node_selector: {node.kubernetes.io/instance-type: p5.48xlarge}, "
        "tolerations: [{key: nvidia.com/gpu, effect: NoSchedule}]}",
        "kubernetes.rdma={resource: rdma/hca, count: 8, networks: rail-0, "
        "environment: {NCCL_IB_HCA: mlx5, NCCL_IB_GID_INDEX: '3'}}",
        "kubernetes.redis={address: 'redis.data:6379', password: {name: redis, key: password}}",
        "kubernetes.token_secret=ray-token",
        "kubernetes.image_pull_secrets=[registry]",
        "kubernetes.deadline=604800",
    ],
    "lora": ["cluster.workers=1", "model.tuning={kind: lora, rank: 16}", "kubernetes.submission=HTTPMode"],
    "kueue": ["cluster.workers=16", "kubernetes.queue=research"],
    "volcano": ["cluster.workers=16", "kubernetes.gang={scheduler: volcano, queue: research}",
                "kubernetes.priority_class=high"],
    "yunikorn": ["cluster.workers=16", "kubernetes.gang={scheduler: yunikorn, queue: root.research}"],
}  # fmt: skip


def config_of(folder, *overrides):
    """The base run with overrides, as a user's file."""
    path = Path(folder) / "run.yaml"
    path.write_text(yaml.safe_dump(BASE, sort_keys=False))
    return load_config(path, overrides)


def objects_of(folder, *overrides):
    return render(open_run(config_of(folder, *overrides)))


def written(name, folder):
    """The manifest of a case."""
    return as_documents(objects_of(folder, *CASES[name]))
