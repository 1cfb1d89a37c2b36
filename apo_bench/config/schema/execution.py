"""Where an experiment runs."""

from pydantic import Field

from apo_bench.config.schema.values import Section


class Executor(Section):
    """Where arm-seeds run; it changes no row."""

    use: str = Field(default="local", pattern=r"^[a-z][a-z0-9_]*$")
    """`local`: processes; `ray`: tasks; `executor: NAME` alone is short for this"""

    address: str | None = None
    """address of a Ray cluster; `null`: one of its own on this machine"""

    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each arm-seed"""

    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each arm-seed"""

    checkpoint_s: float = Field(default=600.0, ge=0)
    """seconds between the checkpoints of a training; 0: after every update"""

    launch: str | None = None
    """an accelerate configuration file that every training is launched with; `null`: models are trained in the worker itself"""
