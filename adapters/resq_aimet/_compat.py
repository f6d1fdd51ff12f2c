"""All that this adapter uses of AIMET beyond its documented interface, and the versions it was tested with."""

from __future__ import annotations

from importlib.metadata import version

from resq_plugin.errors import ConversionError

__all__ = [
    "OLDEST",
    "TOO_NEW",
    "check_version",
    "guard_graph",
    "is_exporting",
    "is_observing",
    "plain",
    "register",
    "release_graph",
]

OLDEST, TOO_NEW = (2, 42), (2, 45)


def check_version(found: str) -> None:
    """Raise unless this version of aimet-torch is one the private names below were tested with.

    Raises:
        ConversionError: it is older or newer; the line to install a fitting one is named.
    """
    parts = tuple(int(part) for part in found.split(".")[:2])
    if not OLDEST <= parts < TOO_NEW:
        low, high = (".".join(map(str, end)) for end in (OLDEST, TOO_NEW))
        msg = f'aimet-torch {found} is not supported; install a tested one: pip install "aimet-torch>={low},<{high}".'
        raise ConversionError(msg)


check_version(version("aimet-torch"))

from aimet_torch.meta.connectedgraph import ConnectedGraph  # noqa: E402
from aimet_torch.nn import QuantizationMixin  # noqa: E402
from aimet_torch.onnx_utils import map_torch_types_to_onnx  # noqa: E402
from aimet_torch.quantization.base import QuantizerBase  # noqa: E402
from aimet_torch.quantization.tensor import QuantizedTensorBase  # noqa: E402
from torch import Tensor, nn, onnx  # noqa: E402


def register(layer: type[nn.Module], host: type[nn.Module]) -> None:
    """Let AIMET take a ResQ class for what it takes its own quantized class ``host`` for."""
    QuantizationMixin.qcls_to_cls[layer] = QuantizationMixin.qcls_to_cls[host]
    if host in map_torch_types_to_onnx:
        map_torch_types_to_onnx[layer] = map_torch_types_to_onnx[host]


def is_observing(quantizer: QuantizerBase | None) -> bool:
    """Whether AIMET is computing encodings: it then replaces the quantizer's ``forward`` by one that looks at x."""
    return quantizer is not None and "forward" in vars(quantizer)


def is_exporting() -> bool:
    """Whether a graph is traced for ONNX: AIMET's kernels then leave a mark that its exporters turn into encodings."""
    return bool(onnx.is_in_onnx_export())


def plain(x: Tensor) -> Tensor:
    """The values of one of AIMET's quantized tensors, a subclass that slows every operation, as a `torch.Tensor`."""
    return x.dequantize().as_subclass(Tensor) if isinstance(x, QuantizedTensorBase) else x


def guard_graph(graph: ConnectedGraph | None) -> None:
    """Let what changes a sim by its graph refuse: it would change Φ and leave Θ as it was.

    These are folding of batch norms to scales and mixed precision, which all ask the graph ``assert_safe()`` first.
    """
    if graph is not None:
        graph.assert_safe = _refuse


def release_graph(graph: ConnectedGraph | None) -> None:
    """Undo `guard_graph`."""
    if graph is not None:
        vars(graph).pop("assert_safe", None)


def _refuse() -> None:
    msg = (
        "this sim has residual paths already, which batch-norm folding to scales and mixed precision would leave as "
        "they are. The order is: fold_all_batch_norms or fold_all_batch_norms_to_scale, mixed precision, then "
        "resq_aimet.convert(sim, config), then resq.compute_encodings(clips). resq.revert() gives the plain sim back."
    )
    raise ConversionError(msg)
