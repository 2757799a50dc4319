"""A step taken apart, on the smallest network that the project has."""
from argparse import Namespace

import profile_step
import pytest

ARGS = Namespace(model="resnet18_largefov", crop=33, batch_size=2, group_size=2)


def test_every_operator_has_one_kind_and_shares_add_up():
    kinds = profile_step.by_kind({"Convolution": (3, 10.0), "_backward_Convolution": (3, 20.0), "batch_dot": (
        2, 5.0), "_backward_Activation": (1, 3.0), "_backward_Pooling": (1, 1.0), "one_hot": (4, 1.0)})
    assert list(kinds)[:3] == ["convolutions, backward", "convolutions, forward", "affinity products"]
    assert kinds["pooling and ReLU"] == {"ms": 4.0, "calls": 2.0, "share": 0.1}
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)


def test_the_profile_sees_every_convolution_of_a_step():
    net, step = profile_step.make_step(ARGS)
    operators = profile_step.profile(net, step, 2)
    layers = profile_step.convolutions(ARGS.model, ARGS.group_size, (2, 3, 33, 33))
    count = sum(entry["layers"] for entry in layers)
    assert operators["Convolution"][0] == operators["_backward_Convolution"][0] == count == 28
    assert operators["Convolution"][1] > 0


def test_a_convolution_is_timed_alone_and_named():
    entry = next(entry for entry in profile_step.convolutions(ARGS.model, 2, (2, 3, 33, 33))
                 if entry.get("dilate") == "(12, 12)")
    assert profile_step.shape_name(entry) == "3x3 d12 512>21"
    assert entry["gflop"] == pytest.approx(2e-9 * 2 * 5 * 5 * 9 * 512 * 21)
    rates = profile_step.time_convolution(entry, 1)
    assert rates["forward_gflops"] > 0 and rates["backward_gflops"] > 0
