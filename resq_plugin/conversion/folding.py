"""Finding the batch norms that can be folded, by running one frame and watching who reads what."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Container, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from resq_plugin.backends import FoldedNorm, fold, is_foldable, unfold
from resq_plugin.errors import CheckpointError
from resq_plugin.method import ResidualLayer, dense_execution, evaluating, residual_layers, telling_unfit_frames

__all__ = ["fold_batch_norms", "folded_pairs", "set_folded_pairs"]

logger = logging.getLogger(__name__)


class _Readers(TorchDispatchMode):
    """Notes which layer outputs an operation outside their batch norm reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[int, tuple[Tensor, ResidualLayer]] = {}
        self.inside_norm = 0
        self.read_elsewhere: set[ResidualLayer] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare the import of `torch._dynamo`, which takes seconds and guards what is never compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside_norm:
            self.note(args)
            self.note(kwargs)
        return func(*args, **(kwargs or {}))

    def note(self, values: Any) -> None:
        for value in tree_iter(values):
            found = self.outputs.get(id(value))
            if found is not None:
                self.read_elsewhere.add(found[1])

    def note_kept(self, layers: Container[ResidualLayer]) -> None:
        """Note whose outputs somebody holds after the run, in the result, of whatever type, or anywhere else."""
        held = [(weakref.ref(output), layer) for output, layer in self.outputs.values() if layer in layers]
        self.outputs.clear()
        if any(output() is not None for output, _ in held):
            gc.collect()  # what is garbage in a cycle is not held
        self.read_elsewhere |= {layer for output, layer in held if output() is not None}


def fold_batch_norms(model: nn.Module, frame: Tensor, run: Callable[[Tensor], Any] | None = None) -> tuple[str, ...]:
    """Fold every batch norm whose input is the output of one converted layer that nothing else reads.

    One float frame is run with hooks; nothing is traced. Other batch norms stay as they are and act on the full z_t.

    Args:
        model: a converted model; its training flags are kept.
        frame: (N, C, H, W).
        run: what runs a frame, when it is not ``model(frame)``.

    Returns:
        Qualified names of the batch norms folded by this call.

    Raises:
        FrameError: the model fails on the frame, and runs on one of another size, type or layout.
    """
    layers = list(residual_layers(model).values())
    norms = {name: module for name, module in model.named_modules() if is_foldable(module)}
    if not norms or any(not hasattr(layer, "_folded") for layer in layers):
        return ()
    readers = _Readers()
    sources: dict[nn.Module, set[ResidualLayer | None]] = {}
    sinks: dict[ResidualLayer, set[nn.Module]] = {}
    taken: set[int] = set()

    def produced(layer: nn.Module, _: Any, output: Tensor) -> None:
        # A linear layer's (N, L, C) is no (N, C, L): a batch norm on it would normalize tokens.
        if cast(ResidualLayer, layer).channel_dim == 1 or output.dim() == 2:
            readers.outputs[id(output)] = (output, cast(ResidualLayer, layer))

    def enters(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        readers.inside_norm += 1
        found = readers.outputs.get(id(args[0] if args else kwargs.get("input")))
        sources.setdefault(norm, set()).add(found[1] if found else None)
        if found:
            sinks.setdefault(found[1], set()).add(norm)
            if id(found[0]) in taken:  # both results would be one tensor, on which the network may work in place
                readers.read_elsewhere.add(found[1])
            taken.add(id(found[0]))

    def leaves(*_: Any) -> None:
        readers.inside_norm -= 1

    handles = [layer.register_forward_hook(produced) for layer in layers]
    for norm in norms.values():
        handles += [norm.register_forward_pre_hook(enters, with_kwargs=True), norm.register_forward_hook(leaves)]
    try:
        with (
            telling_unfit_frames(model, frame, run=run),
            evaluating(model),
            torch.no_grad(),
            dense_execution(),
            readers,
        ):
            result = (run or model)(frame)
        readers.note_kept(sinks.keys() - readers.read_elsewhere)
        del result
    finally:
        for handle in handles:
            handle.remove()

    folded = []
    for name, norm in norms.items():
        found = sources.get(norm, set())
        layer = next(iter(found)) if len(found) == 1 else None
        if layer is None or layer._folded or len(sinks[layer]) > 1 or layer in readers.read_elsewhere:
            logger.info("batch norm %s cannot be folded; it stays dense and acts on the full output", name)
            continue
        layer._folded.append(fold(norm, layer))
        folded.append(name)
    return tuple(folded)


def folded_pairs(model: nn.Module) -> dict[str, str]:
    """The qualified name of every layer with a folded batch norm, and that of the batch norm."""
    names = {module: name for name, module in model.named_modules()}
    return {name: names[norm] for layer, name in names.items() for norm in getattr(layer, "_folded", ())}


def set_folded_pairs(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold what `folded_pairs` of another conversion of the same model lists, and nothing else.

    Raises:
        CheckpointError: the pairs are of another model; this one is unchanged.
    """
    modules = dict(model.named_modules())
    for layer, norm in pairs.items():
        source, sink = modules.get(layer), modules.get(norm)
        fits = isinstance(sink, FoldedNorm) or (sink is not None and is_foldable(sink))
        if not fits or not hasattr(source, "_folded"):
            msg = f"batch norm {norm} is folded into layer {layer}, which this model cannot do; it is another model."
            raise CheckpointError(msg)
    for module in modules.values():
        if isinstance(module, FoldedNorm):
            unfold(module)
        elif isinstance(module, ResidualLayer) and hasattr(module, "_folded"):
            module._folded.clear()
    for layer, norm in pairs.items():
        folding = cast(ResidualLayer, modules[layer])
        folding._folded.append(fold(modules[norm], folding))
