"""The report people open: one self-contained html page of a finished run, drawn without a network, fonts or a plotting library."""

from apo_bench.report.page.render import render
from apo_bench.report.page.samples import read_samples

__all__ = ["read_samples", "render"]
