"""Where an experiment runs, and what computes it."""

from typing import Literal

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

    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that Ray reserves for each arm-seed; `null`: one where the cluster has any, else none"""

    checkpoint_s: float = Field(default=600.0, ge=0)
    """seconds between the checkpoints of a training; 0: after every update"""

    launch: str | None = None
    """an accelerate configuration file that every training is launched with; `null`: models are trained in the worker itself"""


class StoreSettings(Section):
    """What a run folder keeps once its report is written."""

    keep: Literal["all", "last_round", "final"] = "all"
    """models that stay in the store: all; each arm-seed's last policy and reward model; its last policy alone. Rows need none of them"""


class EngineChoice(Section):
    """What samples, scores and trains."""

    use: str = Field(default="transformers", pattern=r"^[a-z][a-z0-9_]*$")
    """`transformers`; `engine: NAME` alone is short for this"""

    memory_gb: float | None = Field(default=None, gt=0)
    """GiB of models that stay loaded in a worker; `null`: half of the GPU's memory, or the worker's core's share of half the machine's"""
