"""ResQ for Brevitas: layers with a residual path, and quantizers on the grid of Eq. 6."""

from resq_plugin.extras import need

need("brevitas", "brevitas")

from resq_brevitas.classes import (  # noqa: E402
    ResQConv1d,
    ResQConv2d,
    ResQConv3d,
    ResQConvTranspose1d,
    ResQConvTranspose2d,
    ResQConvTranspose3d,
    ResQLinear,
)
from resq_brevitas.layer_map import layer_map  # noqa: E402
from resq_brevitas.quantizers import (  # noqa: E402
    ResQAct,
    ResQActMSE,
    ResQWeightPerChannel,
    ResQWeightPerChannelHQO,
    ResQWeightPerChannelMSE,
    ResQWeightPerTensor,
    ResQWeightPerTensorHQO,
    ResQWeightPerTensorMSE,
)

__all__ = [
    "ResQAct",
    "ResQActMSE",
    "ResQConv1d",
    "ResQConv2d",
    "ResQConv3d",
    "ResQConvTranspose1d",
    "ResQConvTranspose2d",
    "ResQConvTranspose3d",
    "ResQLinear",
    "ResQWeightPerChannel",
    "ResQWeightPerChannelHQO",
    "ResQWeightPerChannelMSE",
    "ResQWeightPerTensor",
    "ResQWeightPerTensorHQO",
    "ResQWeightPerTensorMSE",
    "layer_map",
]
