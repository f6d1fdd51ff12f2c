"""ResQ for AIMET: a residual path for every layer of a `QuantizationSimModel`, with AIMET's own quantizers."""

from resq_plugin.extras import need

need("aimet_torch", "aimet")

from resq_aimet.quantsim import QuantizationSimModel  # noqa: E402
from resq_aimet.sim import ResQSim, convert  # noqa: E402

__all__ = ["QuantizationSimModel", "ResQSim", "convert"]
