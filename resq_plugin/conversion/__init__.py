"""Model to ResQ model and back, and what of it is kept on disk."""

from __future__ import annotations

from resq_plugin.conversion.agreement import Disagreement, range_disagreement
from resq_plugin.conversion.checkpoint import (
    checkpoint_config,
    load,
    load_checkpoint,
    load_ranges,
    save_checkpoint,
    save_ranges,
)
from resq_plugin.conversion.converter import ConversionSummary, convert, float_state_dict, revert, summarize
from resq_plugin.conversion.folding import fold_batch_norms, folded_pairs, set_folded_pairs
from resq_plugin.conversion.matching import Match, is_range_of, match_state, unwrap_state
from resq_plugin.conversion.reading import numpy_globals, read_checkpoint
from resq_plugin.method import evaluating

__all__ = [
    "ConversionSummary",
    "Disagreement",
    "Match",
    "checkpoint_config",
    "convert",
    "evaluating",
    "float_state_dict",
    "fold_batch_norms",
    "folded_pairs",
    "is_range_of",
    "load",
    "load_checkpoint",
    "load_ranges",
    "match_state",
    "numpy_globals",
    "range_disagreement",
    "read_checkpoint",
    "revert",
    "save_checkpoint",
    "save_ranges",
    "set_folded_pairs",
    "summarize",
    "unwrap_state",
]
