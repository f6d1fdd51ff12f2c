"""ResQ for AIMET: a residual path for every layer of a `QuantizationSimModel`, with AIMET's own quantizers."""

from resq_aimet.quantsim import QuantizationSimModel
from resq_aimet.sim import ResQSim, convert

__all__ = ["QuantizationSimModel", "ResQSim", "convert"]
