"""The float64 executor against torch in double and against sums written out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from bnfold.errors import NoVerdict
from bnfold.verify.float64 import float64_runner

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)


def one_node(
    op: str, constants: Mapping[str, Array], outputs: int = 1, opset: int = 19, **attributes: Any
) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["x", *constants], names, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, None)],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def result(op: str, x: Array, constants: Mapping[str, Array] | None = None, **attributes: Any) -> Array:
    return float64_runner(one_node(op, constants or {}, **attributes))({"x": x})["y0"]


def assert_equal(found: Array, expected: Array | torch.Tensor) -> None:
    expected = np.asarray(expected)
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


CONVOLUTIONS = [
    # rank, groups, input and output channels, kernel, stride, padding, dilation
    (1, 1, 4, 6, (3,), (1,), (1,), (1,)),
    (1, 2, 4, 6, (4,), (3,), (2,), (2,)),
    (2, 1, 3, 5, (3, 3), (1, 1), (0, 0), (1, 1)),
    (2, 3, 6, 9, (3, 2), (2, 1), (1, 0), (1, 2)),
    (2, 6, 6, 6, (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 6, 6, 12, (5, 3), (1, 2), (2, 1), (1, 1)),
    (3, 2, 4, 4, (1, 3, 2), (1, 2, 1), (0, 1, 1), (1, 1, 2)),
]


@pytest.mark.parametrize(("rank", "groups", "cin", "cout", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution(
    rank: int,
    groups: int,
    cin: int,
    cout: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    with_bias: bool,
) -> None:
    x, weight = RANDOM.normal(size=(2, cin, 9, 8, 7)[: rank + 2]), RANDOM.normal(size=(cout, cin // groups, *kernel))
    constants = {"w": weight} | ({"b": RANDOM.normal(size=cout)} if with_bias else {})
    found = result("Conv", x, constants, group=groups, strides=stride, pads=padding * 2, dilations=dilation)
    operator = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    tensors = [torch.from_numpy(value) for value in (x, *constants.values())]
    assert_equal(found, operator(*tensors, stride=stride, padding=padding, dilation=dilation, groups=groups))


@pytest.mark.parametrize(("rank", "groups", "cin", "cout", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
@pytest.mark.parametrize("extra", [0, 1])
def test_transposed_convolution(
    rank: int,
    groups: int,
    cin: int,
    cout: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    extra: int,
) -> None:
    x, weight = RANDOM.normal(size=(2, cin, 5, 4, 3)[: rank + 2]), RANDOM.normal(size=(cin, cout // groups, *kernel))
    output_padding = tuple(extra if max(s, d) > 1 else 0 for s, d in zip(stride, dilation, strict=True))
    bias = RANDOM.normal(size=cout)
    found = result(
        "ConvTranspose",
        x,
        {"w": weight, "b": bias},
        group=groups,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        output_padding=output_padding,
    )
    operator = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    expected = operator(
        *(torch.from_numpy(value) for value in (x, weight, bias)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
    )
    assert_equal(found, expected)


@pytest.mark.parametrize(("auto_pad", "before"), [("SAME_UPPER", 0), ("SAME_LOWER", 1)])
def test_auto_pad_puts_the_odd_one_where_it_says(auto_pad: str, before: int) -> None:
    x, weight = RANDOM.normal(size=(1, 2, 6, 6)), RANDOM.normal(size=(3, 2, 2, 2))
    padded = torch.from_numpy(np.pad(x, [(0, 0), (0, 0), (before, 1 - before), (before, 1 - before)]))
    expected = functional.conv2d(padded, torch.from_numpy(weight))
    assert_equal(result("Conv", x, {"w": weight}, auto_pad=auto_pad), expected)
    with_stride = functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2)
    assert_equal(result("Conv", x, {"w": weight}, auto_pad=auto_pad, strides=[2, 2]), with_stride)


def test_valid_is_no_padding() -> None:
    x, weight = RANDOM.normal(size=(1, 2, 6, 6)), RANDOM.normal(size=(3, 2, 3, 3))
    expected = functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight))
    assert_equal(result("Conv", x, {"w": weight}, auto_pad="VALID"), expected)


def test_transposed_convolution_to_a_given_size() -> None:
    """Written out: y[o, i·stride + k] += x[c, i] w[c, o, k], then cropped to the wanted size."""
    x, weight = RANDOM.normal(size=(1, 2, 4)), RANDOM.normal(size=(2, 3, 5))
    full = np.zeros((1, 3, 11))
    for c, o, i, k in product(range(2), range(3), range(4), range(5)):
        full[0, o, 2 * i + k] += x[0, c, i] * weight[c, o, k]
    assert_equal(result("ConvTranspose", x, {"w": weight}, strides=[2], output_shape=[8]), full[..., 2:10])
    upper = result("ConvTranspose", x, {"w": weight}, strides=[2], auto_pad="SAME_UPPER")
    assert_equal(upper, full[..., 1:9])


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 21])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (1, 3, 2, 2, 2)])
def test_batch_norm_of_every_opset(opset: int, shape: tuple[int, ...]) -> None:
    x, gamma, beta, mean = RANDOM.normal(size=shape), *RANDOM.normal(size=(3, 3))
    variance = RANDOM.uniform(0.5, 2, size=3)
    constants = {"scale": gamma, "bias": beta, "mean": mean, "var": variance}
    found = result("BatchNormalization", x, constants, opset=opset, epsilon=0.25)
    tensors = [torch.from_numpy(value) for value in (x, mean, variance, gamma, beta)]
    assert_equal(found, functional.batch_norm(*tensors, training=False, eps=0.25))


def test_batch_norm_in_training_mode_normalises_by_the_batch() -> None:
    x, ones, zeros = RANDOM.normal(size=(8, 3, 4)), np.ones(3), np.zeros(3)
    model = one_node(
        "BatchNormalization",
        {"s": ones, "b": zeros, "m": zeros, "v": ones},
        outputs=3,
        opset=15,
        training_mode=1,
        momentum=0.75,
    )
    outputs = float64_runner(model)({"x": x})
    assert_equal(outputs["y0"], functional.batch_norm(torch.from_numpy(x), None, None, training=True))
    assert_equal(outputs["y1"], 0.25 * x.mean(axis=(0, 2)))
    assert_equal(outputs["y2"], 0.75 + 0.25 * x.var(axis=(0, 2)))


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (0, 1)), ((2, 2), (3, 3), (0, 0))]
)
def test_pooling(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil: int) -> None:
    x = RANDOM.normal(size=(2, 3, 8, 7))
    tensor = torch.from_numpy(x)
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "ceil_mode": ceil}
    options: dict[str, Any] = {"stride": stride, "padding": padding, "ceil_mode": bool(ceil)}
    assert_equal(result("MaxPool", x, **window), functional.max_pool2d(tensor, kernel, **options))
    for count in (0, 1):
        expected = functional.avg_pool2d(tensor, kernel, **options, count_include_pad=bool(count))
        assert_equal(result("AveragePool", x, **window, count_include_pad=count), expected)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 2, 3, 4)])
def test_global_max_pool_of_every_rank(shape: tuple[int, ...]) -> None:
    x = RANDOM.normal(size=shape)
    assert_equal(result("GlobalMaxPool", x), x.max(axis=tuple(range(2, len(shape))), keepdims=True))


def test_max_pool_with_dilation_and_with_indices() -> None:
    x = RANDOM.normal(size=(1, 2, 9))
    expected = functional.max_pool1d(torch.from_numpy(x), 3, stride=1, dilation=2)
    assert_equal(result("MaxPool", x, kernel_shape=[3], dilations=[2]), expected)
    square = RANDOM.normal(size=(1, 1, 4, 4))
    outputs = float64_runner(one_node("MaxPool", {}, outputs=2, kernel_shape=[2, 2], strides=[2, 2]))({"x": square})
    assert_equal(square.reshape(-1)[outputs["y1"].reshape(-1)], outputs["y0"].reshape(-1))


def test_functions_of_the_model_use_the_same_operators() -> None:
    """onnx.reference passes no replacement on to them, and its own batch norm of opset 9 ignores the statistics."""
    opsets = [helper.make_opsetid("", 9), helper.make_opsetid("local", 1)]
    inner = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    function = helper.make_function("local", "Norm", ["x", "s", "b", "m", "v"], ["y"], [inner], opsets[:1])
    model = one_node("Norm", {"s": np.ones(2), "b": np.zeros(2), "m": np.full(2, 5.0), "v": np.ones(2)}, domain="local")
    model.functions.append(function)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    assert_equal(
        float64_runner(model)({"x": np.full((1, 2), 6.0)})["y0"],
        np.full((1, 2), 1 / np.sqrt(1 + float(np.float32(1e-5)))),
    )


def test_floating_inputs_become_float64_and_others_stay() -> None:
    assert result("Identity", np.ones(2, np.float16)).dtype == np.float64
    assert result("Identity", np.ones(2, np.int64)).dtype == np.int64


def test_what_cannot_run_says_so() -> None:
    with pytest.raises(NoVerdict, match="Nonsense") as caught:
        float64_runner(one_node("Nonsense", {}))
    assert caught.value.code == "cannot-run"
    with pytest.raises(NoVerdict):
        float64_runner(b"no model")
    with pytest.raises(NoVerdict):
        result("Conv", np.ones((1, 2, 4, 4)), {"w": np.ones((1, 3, 3, 3))})
