"""Initialisation, what trains, and loading and saving of networks."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import (
    CAMClassifier,
    CIANLoss,
    build_model,
    configure_training,
    initialize,
    load_params,
    load_pretrained,
    read_params,
    save_params,
    write_params,
)
from cian.symbols.backbones import TINY

RNG = np.random.RandomState(0)


def tiny(model="resnet50_largefov", **settings):
    net = build_model(model, tiny=True, **{"num_classes": 5, **settings})
    initialize(net)
    return net


def values(net):
    return {name: param.data().asnumpy() for name, param in net.collect_params().items()}


def test_initial_values_depend_on_seed_and_name_alone():
    a, again, other = tiny(), tiny(affinity="self"), tiny()
    initialize(other, seed=1)
    for name, value in values(again).items():
        np.testing.assert_array_equal(value, values(a)[name])
    assert not np.array_equal(values(other)["conv0_weight"], values(a)["conv0_weight"])


def test_what_a_file_did_not_bring_starts_as_if_all_had_been_initialised(tmp_path):
    net = build_model("resnet50_largefov", num_classes=5, tiny=True)
    initial = values(tiny())
    backbone = {name: value + 1
                for name, value in initial.items() if not name.startswith(tuple(net.new_layers))}
    write_params(tmp_path / "w-0000.params", backbone, {})
    load_params(net, tmp_path / "w-0000.params", new=net.new_layers)
    initialize(net, missing=True)
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, backbone.get(name, initial[name]))


def test_initial_values_are_those_of_the_paper_for_new_layers():
    net = build_model("resnet50_largefov",
                      backbone_options={"units": (1, 1, 1, 1), "widths": (64, 64, 128, 256, 512)})
    initialize(net)
    found = values(net)
    for name in ("conv_embed_q_weight", "conv_out_weight", "fc1_weight"):
        assert found[name].std() == pytest.approx(0.01, rel=0.01) and abs(found[name].mean()) < 1e-4
    assert found["conv0_weight"].std() == pytest.approx(np.sqrt(2 / (3 * 49)), rel=0.05)
    assert not found["bn_out_gamma"].any() and (found["bn1_gamma"]
                                                == 1).all() and not found["bn_out_beta"].any()
    assert (found["stage1_unit1_bn1_moving_var"] == 1).all() and not found["bn_out_moving_mean"].any()
    np.testing.assert_allclose(found["bn_data_moving_mean"], (123.68, 116.779, 103.939))
    initialize(net, zero_gamma=False)
    assert (values(net)["bn_out_gamma"] == 1).all()


@pytest.mark.parametrize("model, options",
                         [("resnet18_largefov", {}), ("resnet101_largefov", {"widths": (16, 32, 48, 64, 80)}),
                          ("efficientnet_lite0_largefov", {})])
def test_random_networks_keep_the_scale_of_their_signals(model, options):
    net = build_model(model, affinity="none", backbone_options=options)
    initialize(net)
    feat = net.backbone(mx.nd.array(RNG.uniform(0, 255, (1, 3, 49, 49)))).asnumpy()
    assert 0.05 < feat.std() < 20


def test_training_settings_are_those_of_the_original():
    net = tiny()
    configure_training(net)
    params = net.collect_params()
    trained = {name for name, p in params.items() if p.grad_req != "null"}
    assert trained == {name for name in params if name.endswith("_weight")} | {"bn_out_gamma", "bn_out_beta"}
    fast = {name for name in trained if params[name].lr_mult == 10}
    assert fast == {f"conv_embed_{part}_weight" for part in "qkv"} | {"conv_out_weight", "fc1_weight",
                                                                      "bn_out_gamma", "bn_out_beta"}
    assert all(params[name].lr_mult == 1 for name in trained - fast)
    assert {name for name in trained if params[name].wd_mult == 0} == {"bn_out_beta"}
    configure_training(net, lr_mult_new=3, decay_beta=True)
    assert params["bn_out_beta"].wd_mult == 1 and params["fc1_weight"].lr_mult == 3


def test_vggs_biases_train_without_decay_and_only_fc8_is_fast():
    net = tiny("vgg16_largefov")
    configure_training(net)
    params = net.collect_params()
    assert all(params[name].wd_mult == 0 and params[name].grad_req == "write"
               for name in params if name.endswith("_bias"))
    assert [params[f"{layer}_weight"].lr_mult for layer in ("conv5_3", "fc6", "fc7", "fc8")] == [1, 1, 1, 10]


def test_frozen_prefixes_do_not_train_and_unknown_ones_are_refused():
    net = tiny()
    configure_training(net, freeze=("conv0_", "stage1_"))
    params = net.collect_params()
    assert params["conv0_weight"].grad_req == params["stage1_unit2_conv3_weight"].grad_req == "null"
    assert params["stage2_unit1_conv1_weight"].grad_req == "write"
    configure_training(net)
    assert params["conv0_weight"].grad_req == "write"
    with pytest.raises(InputError, match="no parameter starts with .layer1."):
        configure_training(net, freeze=("layer1",))


def test_two_steps_of_a_trainer_follow_the_originals_update(randomise):
    """v <- .9 v - lr_mult lr (g / batch + wd w); w <- w + v. Frozen parameters and the backbone's
    statistics stay.
    """
    net = build_model("resnet50_largefov", tiny=True, num_classes=5)
    randomise(net)
    configure_training(net)
    lr, wd, batch = 1e-3, 5e-2, 4
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": lr, "momentum": 0.9, "wd": wd})
    loss = CIANLoss(5)
    x = mx.nd.array(RNG.uniform(0, 255, (batch, 3, 17, 25)))
    seeds = mx.nd.array(RNG.choice([0, 1, 4, 255], (batch, 3, 4)))
    start = expected = values(net)
    velocity = dict.fromkeys(expected, 0)
    for _ in range(2):
        with mx.autograd.record():
            total, _ = loss(net(x), seeds, mx.nd.ones((batch, 5)))
        total.backward()
        updated = {}
        for name, param in net.collect_params().items():
            if param.grad_req == "null":
                continue
            fast = name.startswith(("conv_embed", "conv_out", "bn_out", "fc1"))
            gradient = param.grad().asnumpy() / batch + (0 if name == "bn_out_beta" else wd) * expected[name]
            velocity[name] = 0.9 * velocity[name] - (10 if fast else 1) * lr * gradient
            updated[name] = expected[name] + velocity[name]
        trainer.step(batch)
        mx.nd.waitall()
        expected = {**expected, **updated}
        for name, value in values(net).items():
            # a gamma that is fixed is set to 1
            if name.startswith("bn_out_moving") or name == "bn_data_gamma":
                continue
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
            expected[name] = value
    unmoved = [name for name in start if np.array_equal(expected[name], start[name])]
    assert len(unmoved) > 60 and set(unmoved) | set(updated) | {"bn_out_moving_mean",
                                                                "bn_out_moving_var"} == set(start)


def test_a_saved_network_comes_back_whole(tmp_path):
    net, other = tiny(), tiny()
    initialize(other, seed=1)
    path = tmp_path / "resnet50_largefov-0003.params"
    save_params(net, path)
    report = load_params(other, path)
    assert len(report.loaded) == len(values(net)) and not report.missing + report.extra + report.mismatched
    for name, value in values(net).items():
        np.testing.assert_array_equal(values(other)[name], value)


def test_statistics_go_to_aux_and_are_averaged_over_devices(tmp_path):
    net = build_model("resnet18_largefov", tiny=True, num_classes=5)
    initialize(net, ctx=[mx.cpu(0), mx.cpu(1)])
    moving = net.collect_params()["bn_out_moving_mean"]
    for value, copy in zip((1, 4), moving.list_data()):
        copy[:] = value
    save_params(net, tmp_path / "a.params")
    arg, aux = read_params(tmp_path / "a.params")
    assert (aux["bn_out_moving_mean"] == 2.5).all()
    assert all(name.endswith(("_moving_mean", "_moving_var")) for name in aux)
    assert not any(name.endswith(("_moving_mean", "_moving_var")) for name in arg)


def test_saving_right_after_a_step_holds_that_steps_statistics(tmp_path):
    """The original saves before the backward pass has written them."""
    net = tiny("vgg16_largefov")
    net.hybridize(static_alloc=True, static_shape=True)
    # large enough that the backward pass outlasts the reading
    x = mx.nd.array(RNG.uniform(0, 255, (2, 3, 193, 193)))
    for _ in range(3):
        with mx.autograd.record():
            total = sum(y.sum() for y in net(x))
        total.backward()
        save_params(net, tmp_path / "a.params")
        saved = read_params(tmp_path / "a.params")[1]["bn_out_moving_mean"]
        mx.nd.waitall()
        np.testing.assert_array_equal(net.collect_params()["bn_out_moving_mean"].data().asnumpy(), saved)


def test_wrong_checkpoints_are_refused_by_name_and_shape(tmp_path):
    net = tiny()
    path = tmp_path / "a.params"
    save_params(net, path)
    with pytest.raises(InputError,
                       match=r"a.params: does not fit.*1 of another shape: fc1_weight \(5, 20, 3, 3\), "
                             r"needs \(7, 20, 3, 3\)"):
        load_params(tiny(num_classes=7), path)
    with pytest.raises(InputError, match="8 not of this network: .*conv_embed"):
        load_params(tiny(affinity="none"), path)
    arg, aux = read_params(path)
    del arg["stage3_unit1_sc_weight"]
    write_params(path, arg, aux)
    before = values(net)
    with pytest.raises(InputError, match="1 missing: stage3_unit1_sc_weight"):
        load_params(net, path, new=net.new_layers)
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, before[name])


def zoo_file(path, net, classifier):
    """Weights of the backbone of ``net``, times 2, and a classifier of 1000 classes, as a file of
    the model zoo.
    """
    arg, aux = {}, {}
    for name, param in net.backbone.collect_params().items():
        if not name.startswith(("fc6", "fc7")):
            (aux if "_moving_" in name else arg)[name] = 2 * param.data().asnumpy()
    for name, shape in classifier.items():
        arg[name] = np.ones(shape, np.float32)
    write_params(path, arg, aux)


@pytest.mark.parametrize("model, classifier",
                         [("resnet50_largefov", {"fc1_weight": (1000, 20), "fc1_bias": (1000,)}),
                          ("resnet101_largefov", {"fc1_weight": (1000, 20), "fc1_bias": (1000,)}), (
    "vgg16_largefov", {"fc6_weight": (13, 343), "fc6_bias": (13,), "fc7_weight": (13, 13), "fc7_bias": (13,),
                       "fc8_weight": (1000, 13), "fc8_bias": (1000,)})])
def test_the_model_zoos_classifier_is_replaced_and_reported(tmp_path, model, classifier):
    net = tiny(model)
    before = values(net)
    zoo_file(tmp_path / "zoo-0000.params", net, classifier)
    report = load_pretrained(net, tmp_path / "zoo-0000.params")
    after = values(net)
    head = "fc8_weight" if model.startswith("vgg") else "fc1_weight"
    assert head in report.mismatched and "conv_embed_q_weight" in report.missing
    assert set(report.mismatched) | set(report.extra) == set(classifier)
    assert set(report.loaded) == {name for name in net.backbone.collect_params() if name not in classifier}
    for name, value in after.items():
        np.testing.assert_array_equal(value, 2 * before[name] if name in report.loaded else before[name])
    assert head in str(report) and f"loaded {len(report.loaded)} parameters" in str(report)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18"])
def test_the_model_zoos_weights_load_into_a_cam_classifier(tmp_path, backbone):
    net = CAMClassifier(backbone, 3, TINY[backbone])
    initialize(net)
    names = {"vgg16": ("fc6_weight", "fc8_bias"), "resnet18": ("fc1_weight",)}[backbone]
    zoo_file(tmp_path / "zoo-0000.params", net, dict.fromkeys(names, (7,)))
    report = load_pretrained(net, tmp_path / "zoo-0000.params")
    assert report.missing == ("fc_cam_weight",) and set(report.extra) == set(names)


def test_a_pretrained_file_that_lacks_part_of_the_backbone_is_refused(tmp_path):
    zoo_file(tmp_path / "zoo.params", tiny("resnet18_largefov"), {})
    with pytest.raises(InputError, match="missing: .*conv3_weight"):
        load_pretrained(tiny("resnet50_largefov"), tmp_path / "zoo.params")


def test_packaged_weights_fit_lite0_alone():
    with pytest.raises(InputError, match="only efficientnet_lite0"):
        load_pretrained(tiny(), "package")
    net = build_model("efficientnet_lite0_largefov", num_classes=5)
    initialize(net)
    report = load_pretrained(net, "package")
    assert set(report.missing) == {name for name in net.collect_params() if name.startswith(net.fast_layers)}
    assert report.extra == ("head_fc0_weight", "head_fc0_bias")
