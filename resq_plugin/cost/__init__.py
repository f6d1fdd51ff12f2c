"""MACs, bit operations and state bytes of a model."""

from __future__ import annotations

from resq_plugin.cost.dry_run import LayerCall, dry_run
from resq_plugin.cost.measure import FLOAT_BITS, measure_cost
from resq_plugin.cost.result import Cost
from resq_plugin.cost.state import Kept, state_bytes_of
from resq_plugin.cost.table import cost_table, uncounted_summary

__all__ = [
    "FLOAT_BITS",
    "Cost",
    "Kept",
    "LayerCall",
    "cost_table",
    "dry_run",
    "measure_cost",
    "state_bytes_of",
    "uncounted_summary",
]
