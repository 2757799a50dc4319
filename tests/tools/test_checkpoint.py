"""Names of a checkpoint beside those of a network, and momentum handed on in the file of MXNet's Module."""
import pickle

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.metadata import write_metadata
from cian.symbols.params import initialize, save_params
from cian.symbols.params_file import read_params, write_params
from cian.tools import checkpoint
from cian.tools.engine.models.run_state import write_state

MODEL = "resnet18_largefov"


@pytest.fixture
def saved(tmp_path):
    """(network, path of its checkpoint after the second epoch)."""
    net = build_model(MODEL, tiny=True, num_classes=4)
    initialize(net, 1)
    path = str(tmp_path / f"{MODEL}-0001.params")
    save_params(net, path, metadata(net))
    return net, path


def metadata(net):
    return {"network": net.settings, "classes": ["background", "a", "b", "c"], "model": MODEL, "epoch": 1}


def test_a_checkpoint_of_ours_fits_its_network(saved, capsys):
    assert checkpoint.main([saved[1]]) == 0
    printed = capsys.readouterr().out
    assert (f"{len(saved[0].collect_params().keys())} arrays fit" in printed
            and "0 missing\n  0 extra\n  0 of another shape" in printed)


def test_names_that_do_not_fit_are_listed_by_kind(saved, capsys):
    arrays, statistics = read_params(saved[1])
    arrays["fc1_bias"] = arrays.pop("bn_out_beta")
    arrays["fc1_weight"] = arrays["fc1_weight"][:3]
    write_params(saved[1], arrays, statistics)
    write_metadata(saved[1], metadata(saved[0]))
    assert checkpoint.main([saved[1]]) == 1
    printed = capsys.readouterr().out
    assert "1 missing: bn_out_beta\n  1 extra: fc1_bias\n  1 of another shape: fc1_weight\n" in printed


def test_a_file_of_the_model_zoo_lacks_the_new_layers_alone(tmp_path, capsys):
    net = build_model(MODEL, num_classes=21)
    initialize(net, 1)
    path = str(tmp_path / "resnet-18-0000.params")
    save_params(net, path)
    arrays, statistics = read_params(path)
    zoo = {name: array for name, array in arrays.items() if not name.startswith(("conv_", "bn_out", "fc1"))}
    write_params(path, {**zoo, "fc1_weight": np.zeros((1000, 512)), "fc1_bias": np.zeros(1000)},
                 {name: array for name, array in statistics.items() if not name.startswith("bn_out")})
    assert checkpoint.main([path, "--model", MODEL]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  8 missing: ") and {name.strip() for name in lines[1].partition(
        ":")[2].split(",")} == {"conv_embed_q_weight", "conv_embed_k_weight", "conv_embed_v_weight",
                                "conv_out_weight", "bn_out_gamma", "bn_out_beta", "bn_out_moving_mean",
                                "bn_out_moving_var"}
    assert lines[2:] == ["  1 extra: fc1_bias", "  1 of another shape: fc1_weight"]


@pytest.mark.parametrize("devices", [1, 2])
def test_momentum_of_a_run_is_written_for_a_module_and_read_back(saved, tmp_path, capsys, devices):
    net, path = saved
    momentum = {name: np.random.RandomState(number).normal(size=parameter.shape).astype(np.float32)
                for number, (name, parameter) in enumerate(net.collect_params().items())
                if name.endswith("_weight")}
    write_state(tmp_path / f"{MODEL}.state",
                {"version": 1, "epoch": 2, "batch": 0, "trainer": {"momentum": momentum}})
    written = str(tmp_path / "out.states")
    assert checkpoint.main([path, "--write-states", written, "--devices", str(devices)]) == 0
    with open(written, "rb") as stream:
        content = {key: array.asnumpy() for key, array in pickle.load(stream).items()}
    symbol = mx.sym.Group(net(mx.sym.var("data")))
    module = mx.mod.Module(symbol, label_names=None, context=mx.cpu())
    module.bind([("data", (2, 3, 33, 33))])
    expected = {(module._param_names.index(name) if devices == 1 else name): value
                for name, value in momentum.items()}
    assert content.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(content[key], value)
    if devices == 2:  # by name, whatever the order of the .params file
        assert checkpoint.main([path, "--states", written]) == 0
        assert f"momentum of {len(momentum)} parameters" in capsys.readouterr().out


def test_a_state_of_another_epoch_and_a_missing_one_are_refused(saved, tmp_path):
    arguments = [saved[1], "--write-states", str(tmp_path / "out.states")]
    with pytest.raises(InputError, match=r"resnet18_largefov\.state: does not exist"):
        checkpoint.main(arguments)
    write_state(tmp_path / f"{MODEL}.state",
                {"version": 1, "epoch": 2, "batch": 3, "trainer": {"momentum": {}}})
    with pytest.raises(InputError, match="after 2 epochs and 3 batches"):
        checkpoint.main(arguments)


def test_a_name_that_tells_no_model_is_refused(tmp_path):
    path = str(tmp_path / "weights.params")
    write_params(path, {"a": np.ones(3)}, {})
    with pytest.raises(InputError, match="resnet50_largefov"):
        checkpoint.main([path])
