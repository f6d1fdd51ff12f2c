"""BOPs against hand-computed arithmetic, and the model untouched by the count."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import build
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resq_plugin.backends.torch_backend import attach
from resq_plugin.config import ResQConfig
from resq_plugin.cost.measure import Cost, measure_cost
from resq_plugin.cost.table import cost_table, uncounted_summary
from resq_plugin.errors import ConfigError, ResQError
from resq_plugin.method.layers import LayerSettings

W8A8_W4A4 = ResQConfig.parse("W8A8->W4A4", interval=3)


class Net(nn.Module):
    """A stem, a block that is run twice and a head, with things in between that are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 5)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.stem(frame)
        x = self.block(x) + x
        x = self.block(x)
        return self.head(x.mean((2, 3)))


STEM = 8 * 5 * 10 * 3 * 9  # (N, 3, 10, 20) -> (N, 8, 5, 10)
BLOCK = 2 * 8 * 5 * 10 * (8 // 4) * 9  # called twice
HEAD = 5 * 8


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        # H' = (11 + 2 - 2·2 - 1) // 2 + 1 = 5, W' = (13 + 2 - 2·2 - 1) // 2 + 1 = 6
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, dilation=2), (2, 4, 11, 13), 2 * 8 * 5 * 6 * (4 // 2) * 9),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (1, 6, 5, 7), 6 * 5 * 7 * 1 * 9),
        (nn.Conv2d(3, 4, (1, 5), padding="same"), (1, 3, 4, 9), 4 * 4 * 9 * 3 * 5),
        (nn.Conv1d(3, 5, 4), (1, 3, 10), 5 * 7 * 3 * 4),
        (nn.Conv3d(2, 4, (1, 3, 3)), (1, 2, 4, 6, 8), 4 * (4 * 4 * 6) * 2 * 9),
        # every input element meets the 6/2 · 4 · 4 weights of its filter
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2), (1, 4, 5, 7), (4 * 5 * 7) * (6 // 2) * 16),
        (nn.ConvTranspose1d(3, 2, 5, stride=3), (2, 3, 7), (2 * 3 * 7) * 2 * 5),
        (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 4, 5), (2 * 3 * 4 * 5) * 3 * 8),
        (nn.Linear(10, 3), (2, 7, 10), 2 * 7 * 3 * 10),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_macs_and_bops_of_one_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    cost = measure_cost(nn.Sequential(layer), shape, W8A8_W4A4)

    with FlopCounterMode(display=False) as flops:
        z = layer(torch.zeros(shape))
    assert cost.macs == macs == flops.get_total_flops() // 2
    assert cost.bops_keyframe == macs * 8 * 8
    assert cost.bops_residual == macs * 4 * 4
    assert cost.bops_per_frame == pytest.approx(macs * (64 + 2 * 16) / 3, rel=1e-12)
    assert cost.peak_bops == macs * 64
    assert cost.state_bytes == 4 * torch.zeros(shape).numel() + 4 * z.numel()
    assert not cost.uncounted
    (row,) = cost.by_layer()
    assert (row.name, row.kind, row.precision) == ("0", type(layer).__name__, "W8A8->W4A4")


def test_a_reused_layer_is_counted_at_every_call() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20), W8A8_W4A4)

    assert {row.name: (row.calls, row.macs) for row in cost.by_layer()} == {
        "stem.0": (1, STEM),
        "block.0": (2, BLOCK),
        "head": (1, HEAD),
    }
    # x_k and z_k of each of the two calls, (1, 8, 5, 10) each, 4 bytes per element
    assert cost.by_layer()[1].state_bytes == 2 * (400 + 400) * 4


def test_rows_add_up_to_the_total() -> None:
    cost = measure_cost(Net(), (2, 3, 10, 20), ResQConfig.parse("W8A8->W4A{0,4,8}", interval=4, exclude=["head"]))

    for rows in (cost.by_layer(), cost.by_module(), cost.by_module(depth=5)):
        for key in ("macs", "bops_keyframe", "bops_residual", "bops_per_frame", "policy_bops", "state_bytes"):
            assert sum(getattr(row, key) for row in rows) == getattr(cost, key), key
    assert [(row.name, row.kind) for row in cost.by_module()] == [
        ("stem", "module"),
        ("block", "module"),
        ("head", "Linear"),
    ]
    assert cost.macs == 2 * (STEM + BLOCK + HEAD)
    with pytest.raises(ConfigError, match="depth=0"):
        cost.by_module(depth=0)


def test_macs_agree_with_the_flop_counter_of_torch() -> None:
    net = Net().eval()
    with FlopCounterMode(display=False) as flops:
        net(torch.zeros(3, 3, 32, 48))

    assert measure_cost(net, (3, 3, 32, 48)).macs == flops.get_total_flops() // 2


def test_layers_left_in_float_cost_32_by_32_bits_in_every_frame() -> None:
    config = W8A8_W4A4.replace(exclude=["head", "stem.*"])
    cost = measure_cost(Net(), (1, 3, 10, 20), config)

    assert cost.float_layers == ("stem.0", "head")
    assert cost.bops_keyframe == (STEM + HEAD) * 32 * 32 + BLOCK * 64
    assert cost.bops_residual == (STEM + HEAD) * 32 * 32 + BLOCK * 16
    assert cost.by_layer()[0].state_bytes == 0


def test_a_float_model_without_a_configuration_counts_as_float() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20))

    assert (cost.interval, cost.state_bytes, len(cost.float_layers)) == (1, 0, 3)
    assert cost.bops_per_frame == cost.peak_bops == (STEM + BLOCK + HEAD) * 1024


def test_a_subclass_stays_in_float_as_in_convert() -> None:
    class Standardized(nn.Conv2d):
        pass

    cost = measure_cost(nn.Sequential(Standardized(3, 4, 1)), (1, 3, 2, 2), W8A8_W4A4)
    assert cost.float_layers == ("0",)
    assert cost.by_layer()[0].kind == "Conv2d"


def test_overrides_apply_by_name() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20), W8A8_W4A4.replace(overrides={"head": "W8A8->W8A8"}))

    assert cost.bops_residual == (STEM + BLOCK) * 16 + HEAD * 64
    assert cost.by_module()[-1].precision == "W8A8->W8A8"


def test_frame_quantization_costs_the_same_in_every_frame() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20), ResQConfig.parse("W4A8", interval=3))

    assert cost.bops_keyframe == cost.bops_residual == cost.bops_per_frame == (STEM + BLOCK + HEAD) * 4 * 8
    assert cost.state_bytes == 0


@pytest.mark.parametrize(
    ("reference", "precision", "per_input"),
    [("float", "W8A8->W4A4", 4), ("quantized", "W8A8->W4A4", 1), ("running", "W4A4->W3A3", 4), ("running", "W8A9", 0)],
)
def test_state_bytes_follow_the_reference(reference: str, precision: str, per_input: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 7, 1))
    cost = measure_cost(net, (2, 3, 4, 5), ResQConfig.parse(precision, reference=reference))

    outputs = 7 * 40 * 4 if per_input else 0
    assert cost.state_bytes == 3 * 40 * per_input + outputs


def test_sixteen_bit_references_take_two_bytes() -> None:
    config = ResQConfig.parse("W8A9->W8A4", reference="quantized")
    assert measure_cost(nn.Sequential(nn.Linear(6, 1)), (1, 6), config).state_bytes == 6 * 2 + 4


class TestDynamic:
    NET = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    CONFIG = ResQConfig.parse("W8A8->W4A{0,4,8}", interval=3)
    FIRST, SECOND = 8 * 3 * 20, 2 * 8 * 20  # MACs on (1, 3, 4, 5)
    # elements · len(pool) · b_max²
    POLICY_FIRST, POLICY_SECOND = (3 * 20) * 3 * 64, (8 * 20) * 3 * 64

    def measure(self, shares: dict[str, dict[int, float]] | None = None) -> Cost:
        return measure_cost(self.NET, (1, 3, 4, 5), self.CONFIG, shares)

    def test_without_shares_the_highest_bit_width_is_an_upper_bound(self) -> None:
        cost = self.measure()

        assert cost.is_upper_bound
        assert cost.policy_bops == self.POLICY_FIRST + self.POLICY_SECOND
        assert cost.bops_residual == (self.FIRST + self.SECOND) * 4 * 8 + cost.policy_bops

    def test_shares_weigh_the_bit_widths(self) -> None:
        cost = self.measure({"0": {0: 0.75, 4: 0.25, 8: 0.0}, "2": {0: 0.5, 4: 0.25, 8: 0.25}})

        assert not cost.is_upper_bound
        first, second = cost.by_layer()
        assert first.bops_residual == self.FIRST * 4 * (0.25 * 4) + self.POLICY_FIRST
        assert second.bops_residual == self.SECOND * 4 * (0.25 * 4 + 0.25 * 8) + self.POLICY_SECOND
        assert second.bops_per_frame == pytest.approx((self.SECOND * 64 + 2 * second.bops_residual) / 3, rel=1e-12)

    def test_a_layer_without_shares_keeps_the_bound(self) -> None:
        assert self.measure({"0": {0: 1.0}}).is_upper_bound

    def test_a_pool_of_one_has_nothing_to_choose(self) -> None:
        cost = measure_cost(self.NET, (1, 3, 4, 5), self.CONFIG.replace(precision="W8A8->W4A{8}"))
        assert (cost.policy_bops, cost.is_upper_bound) == (0, False)

    @pytest.mark.parametrize(
        ("shares", "text"),
        [
            ({"0": {0: 0.5, 8: 0.4}}, "add up to 1"),
            ({"0": {2: 1.0}}, r"pool \(0, 4, 8\)"),
            ({"0": {0: 1.5, 4: -0.5}}, "at least 0"),
            ({"0": {}}, "add up to 1"),
            ({"0": {0: float("nan")}}, "add up to 1"),
            ({"O": {0: 1.0}}, "layer 'O', which does not run"),
        ],
    )
    def test_impossible_shares(self, shares: dict[str, dict[int, float]], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            self.measure(shares)

    def test_shares_of_a_layer_that_is_not_dynamic(self) -> None:
        with pytest.raises(ConfigError, match="W4A4 is not a dynamic pool"):
            measure_cost(self.NET, (1, 3, 4, 5), W8A8_W4A4, {"0": {0: 1.0}})


def converted(config: ResQConfig) -> Net:
    net = Net()
    for name, module in list(net.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)) and config.selects(name):
            attach(module, LayerSettings(name, *config.precision_of(name), config))
    return net


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}", "W8A8"])
def test_a_converted_model_costs_what_its_configuration_says(precision: str) -> None:
    config = ResQConfig.parse(precision, interval=5, exclude=["head"], reference="quantized")

    # not calibrated: counting needs no scales
    assert measure_cost(converted(config), (1, 3, 10, 20)) == measure_cost(Net(), (1, 3, 10, 20), config)
    assert measure_cost(converted(config), (1, 3, 10, 20), W8A8_W4A4) == measure_cost(Net(), (1, 3, 10, 20), W8A8_W4A4)


def test_what_is_not_counted_is_listed_per_innermost_module() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20), W8A8_W4A4)

    listed = {str(ops) for ops in cost.uncounted}
    assert {
        "stem.2: aten.relu x1",
        "block.1: aten.relu_ x2",
        "(model): aten.add x1",
        "(model): aten.mean x1",
    } <= listed
    assert len(listed) == 5  # and the batch norm
    assert uncounted_summary(cost).startswith("aten.relu_ x2, ")


def test_functional_layers_are_listed_not_dropped() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, frame: Tensor) -> Tensor:
            return nn.functional.conv2d(frame, self.conv.weight)

    cost = measure_cost(nn.Sequential(Functional()), (1, 3, 2, 2), W8A8_W4A4)
    assert (cost.macs, [str(ops) for ops in cost.uncounted]) == (0, ["0: aten.convolution x1"])


def test_views_and_allocations_are_no_work() -> None:
    class Views(nn.Module):
        def forward(self, frame: Tensor) -> Tensor:
            x = frame.flatten(1).unsqueeze(1).transpose(1, 2)[:, 1:].reshape(-1, 2).chunk(2)[0].detach()
            return (
                frame.new_zeros(3).expand(2, 3),
                torch.empty_like(x).squeeze_(),
                torch.ones(2),
                torch.full_like(x, 2),
            )

    assert measure_cost(Views(), (1, 1, 3, 3)).uncounted == ()


class ReadsData(nn.Module):
    """Cannot run without data, because it branches on values."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.register_buffer("count", torch.zeros(()))
        self.fails, self.seen = fails, None

    def forward(self, frame: Tensor) -> Tensor:
        self.count += 1
        self.seen = frame
        x = self.conv(frame)
        if self.fails:
            msg = "broken"
            raise RuntimeError(msg)
        return x if float(x.sum()) > 1e9 else self.conv(frame)


def test_a_model_that_reads_values_is_run_for_real() -> None:
    assert measure_cost(ReadsData(), (1, 1, 4, 4), W8A8_W4A4).macs == 2 * 2 * 16


@pytest.mark.parametrize("make", [Net, ReadsData, lambda: ReadsData(fails=True), lambda: converted(W8A8_W4A4)])
def test_the_model_is_untouched_also_by_a_failure(make: type[nn.Module]) -> None:
    net = make().train()
    next(net.children()).eval()
    next(net.parameters()).requires_grad_(False)
    before = {name: copy.copy(vars(module)) for name, module in net.named_modules()}
    parameters = dict(net.named_parameters())
    values = copy.deepcopy(net.state_dict())

    if getattr(net, "fails", False):
        with pytest.raises(
            ResQError, match=r"ReadsData fails on an input of shape \(1, 1, 4, 4\): RuntimeError: broken"
        ):
            measure_cost(net, (1, 1, 4, 4))
    else:
        measure_cost(net, (1, 1 if isinstance(net, ReadsData) else 3, 4, 4))

    assert {name: vars(module) for name, module in net.named_modules()} == before
    assert all(dict(net.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert all(parameter.grad is None for parameter in parameters.values())
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("shape", [(), (1, 3, 0, 2), (1, 3, 2.5, 2), (1, 3, -4, 2)])
def test_impossible_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"e\.g\. \(1, 3, 1024, 2048\)"):
        measure_cost(Net(), shape)


def test_a_shape_the_model_cannot_take_is_named() -> None:
    with pytest.raises(ResQError, match=r"Net fails on an input of shape \(1, 4, 8, 8\)"):
        measure_cost(Net(), (1, 4, 8, 8))


def test_the_table_has_a_row_per_module_and_the_totals() -> None:
    cost = measure_cost(Net(), (1, 3, 10, 20), W8A8_W4A4)

    assert cost_table(cost).row_count == 4
    table = cost_table(cost, depth=None)
    assert list(table.columns[0].cells) == ["stem.0", "block.0", "head", "total"]
    assert table.title == "W8A8->W4A4, averaged over T=3 frames"


def test_a_module_of_two_names_is_as_before() -> None:
    """`functional_call` gives it back its tensors under one name only."""
    model, frame = build("pyramid"), torch.zeros(1, 3, 12, 16)
    expected = model(frame)
    measure_cost(model, frame.shape)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(model(frame), expected)
