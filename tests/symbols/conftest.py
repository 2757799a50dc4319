"""NumPy references of the layers, in float64, and the checks that every block has to pass."""
import mxnet as mx
import numpy as np
import pytest


def convolve(x, weight, bias=None, stride=1, dilation=1, groups=1):
    """Convolution padded by dilation * (kernel // 2): the sum over kernel positions of shifted,
    weighted inputs.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    kernel = weight.shape[2]
    pad = dilation * (kernel // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    out = np.zeros((x.shape[0], weight.shape[0], height, width))
    for group in range(groups):
        rows = slice(group * weight.shape[0] // groups, (group + 1) * weight.shape[0] // groups)
        channels = slice(group * x.shape[1] // groups, (group + 1) * x.shape[1] // groups)
        for i in range(kernel):
            for j in range(kernel):
                top, left = i * dilation, j * dilation
                seen = padded[:, channels, top:top + (height - 1) * stride + 1:stride,
                              left:left + (width - 1) * stride + 1:stride]
                out[:, rows] += np.einsum("nchw,oc->nohw", seen, weight[rows, :, i, j])
    return out if bias is None else out + np.asarray(bias, np.float64).reshape((1, -1, 1, 1))


def max_pool(x, stride=2):
    """3x3 max-pooling, padded by 1."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    shifted = [padded[:, :, i:i + (height - 1) * stride + 1:stride, j:j + (width - 1) * stride + 1:stride]
               for i in range(3) for j in range(3)]
    return np.max(shifted, axis=0)


def normalise(x, gamma, beta, mean, variance, eps=1e-5):
    """Batch norm with given statistics."""
    gamma, beta, mean, variance = (np.asarray(v, np.float64).reshape((1, -1, 1, 1))
                                   for v in (gamma, beta, mean, variance))
    return (np.asarray(x, np.float64) - mean) / np.sqrt(variance + eps) * gamma + beta


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def resize(x, height, width):
    """Bilinear resizing with aligned corners of (N, C, H, W)."""
    def weights(old, new):
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0)
        low = np.minimum(at.astype(int), max(old - 2, 0))
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (at - low)
        matrix[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
        return matrix
    return np.einsum("ih,jw,nchw->ncij", weights(x.shape[2], height), weights(x.shape[3], width),
                     np.asarray(x, np.float64))


class Reference:
    """The functions above, as one fixture."""

    convolve, max_pool, normalise, softmax, resize = map(staticmethod,
                                                         (convolve, max_pool, normalise, softmax, resize))


@pytest.fixture
def reference():
    return Reference


def as_list(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@pytest.fixture
def randomise():
    """Random values for every parameter, statistics included: ``randomise(block, seed)`` returns
    name -> array, full names.
    """
    def run(block, seed=0):
        rng = np.random.RandomState(seed)
        values = {}
        for name, param in block.collect_params().items():
            value = rng.randn(*param.shape) / np.sqrt(max(1, np.prod(param.shape[1:])))
            if name.endswith(("gamma", "moving_var")):
                value = rng.uniform(0.5, 1.5, param.shape)
            param.initialize(mx.init.Zero(), force_reinit=True)
            param.set_data(mx.nd.array(value))
            values[name] = np.asarray(value, np.float32)
        return values
    return run


@pytest.fixture
def outputs_three_ways(tmp_path):
    """Outputs of a block, the same imperatively, hybridized and exported and imported again: a list
    of arrays.
    """
    def run(block, *inputs, tolerance=1e-5):
        inputs = [mx.nd.array(x) for x in inputs]
        block.hybridize(False)
        plain = [y.asnumpy() for y in as_list(block(*inputs))]
        block.hybridize()
        hybrid = [y.asnumpy() for y in as_list(block(*inputs))]
        block.export(str(tmp_path / "block"))
        names = ["data"] if len(inputs) == 1 else [f"data{i}" for i in range(len(inputs))]
        weights = tmp_path / "block-0000.params"
        imported = mx.gluon.SymbolBlock.imports(str(tmp_path / "block-symbol.json"), names, str(weights))
        exported = [y.asnumpy() for y in as_list(imported(*inputs))]
        for a, b, c in zip(plain, hybrid, exported):
            scale = np.abs(a).max() + 1e-30
            assert np.abs(a - b).max() <= tolerance * scale
            assert np.abs(a - c).max() <= tolerance * scale
        assert len(plain) == len(hybrid) == len(exported)
        return plain
    return run


@pytest.fixture
def gradients():
    """Gradients of a random projection of a block's outputs by every parameter that trains, by name."""
    def run(block, *inputs, seed=5):
        rng = np.random.RandomState(seed)
        with mx.autograd.record():
            outputs = as_list(block(*[mx.nd.array(x) for x in inputs]))
            total = sum((y * mx.nd.array(rng.randn(*y.shape))).sum() for y in outputs)
        total.backward()
        mx.nd.waitall()
        return {name: param.grad().asnumpy()
                for name, param in block.collect_params().items() if param.grad_req != "null"}
    return run
