"""Where ranks run, and who feeds them: the settings of cluster and service."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dist_sft.config.section import EXECUTION, Section, matching


class ClusterSection(Section):
    """cluster: what Ray is asked for."""

    address: str | None = Field(
        default=None, description="of a Ray cluster; none: RAY_ADDRESS, else a local Ray", json_schema_extra=EXECUTION
    )
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=1,
        description="ranks; or the fewest and the most, e.g. [4, 8]: goes on with those that are left when a node is "
        "lost, and grows again",
        json_schema_extra=EXECUTION,
    )
    gpus_per_worker: NonNegativeFloat = Field(default=1, description="0: train on CPU", json_schema_extra=EXECUTION)
    cpus_per_worker: PositiveFloat = Field(default=1, json_schema_extra=EXECUTION)
    interface: Annotated[str, matching(r"[^\s,/]+", "the name of one network interface")] | None = Field(
        default=None,
        description="network interface that gradients travel by, e.g. eth0 or ib0, the same on every node; none: gloo "
        "and NCCL choose",
        json_schema_extra=EXECUTION,
    )
    resource: str | None = Field(
        default=None,
        min_length=1,
        description="a resource of Ray's of which each worker takes one, so that only nodes that have it train: "
        "ray start --resources='{\"trainer\": 8}'",
        json_schema_extra=EXECUTION,
    )
    max_failures: NonNegativeInt = Field(
        default=0,
        description="restarts of the ranks after a fault; those after a pre-emption that was announced do not count",
        json_schema_extra=EXECUTION,
    )
    hang: PositiveFloat = Field(
        default=1800.0,
        description="seconds without a step, or without a sign of life, after which a rank is taken for stuck: all "
        "ranks write their stacks to RUN_DIR/stacks, and are started again",
        json_schema_extra=EXECUTION,
    )
    preflight: bool = Field(
        default=True,
        description="look at every node of a cluster that is joined, before workers are started: storage, versions, "
        "clocks, disks, shared memory, GPUs, ports",
        json_schema_extra=EXECUTION,
    )
    regrow: PositiveFloat = Field(
        default=120.0,
        description="seconds between two looks whether more ranks can be had; more than a rank takes to start",
        json_schema_extra=EXECUTION,
    )

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class ServiceSection(Section):
    """service: who encodes rows and hands out steps."""

    encoders: NonNegativeInt | None = Field(
        default=None,
        description="Ray actors that encode; none: one per 16 workers; 0: each worker encodes for itself",
        json_schema_extra=EXECUTION,
    )
    cpus_per_encoder: PositiveFloat = Field(default=1, json_schema_extra=EXECUTION)
    resource: str | None = Field(
        default=None,
        min_length=1,
        description="a resource of Ray's, so that encoders and dealer run only on nodes that have it: ray start "
        "--resources='{\"encoder\": 1}'; none: on nodes without GPUs where they have room",
        json_schema_extra=EXECUTION,
    )
    prefetch: PositiveInt = Field(
        default=2, description="steps that a worker asks for ahead", json_schema_extra=EXECUTION
    )
    budget: PositiveInt = Field(
        default=1 << 30, description="most bytes of encoded samples on their way", json_schema_extra=EXECUTION
    )
    stall: PositiveFloat = Field(
        default=60.0,
        description="seconds without an answer after which a member is taken for frozen, and replaced",
        json_schema_extra=EXECUTION,
    )
