"""References for the measurement of what a common class tells."""
import mxnet as mx
import numpy as np
import pairs

from cian.data.classes import IGNORE
from cian.symbols import build_model, initialize


def test_references_are_the_next_with_and_without_a_common_class():
    labels = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0]])
    found = pairs.references(labels)
    assert found["common"].tolist() == [2, 2, 0, -1]
    assert found["none in common"].tolist() == [1, 3, 3, 0]


def test_targets_count_where_the_seed_says_nothing_and_its_classes_are_predicted():
    mx.random.seed(0)
    net = build_model("resnet18_largefov", tiny=True, num_classes=3)
    initialize(net)
    net.affinity.norm.gamma.set_data(mx.nd.zeros_like(net.affinity.norm.gamma.data()))
    feat = net.backbone(mx.nd.random.uniform(0, 255, (1, 3, 33, 33)))
    given = net.head(feat)[0].asnumpy().argmax(axis=0)
    mask = np.kron(given, np.ones((8, 8), np.uint8))[:33, :33].astype(np.uint8)
    nothing, seed = np.full_like(mask, IGNORE), np.full_like(mask, IGNORE)
    seed[0, 0] = mask[0, 0]
    rms, _, changed, right, told, objects, hidden = pairs._pair(net, feat, feat, mask, mask, seed)
    counted = (given == given[0, 0]).sum() - 1
    assert rms == changed == 0 and right == told == counted
    assert objects == (counted if given[0, 0] else 0) and hidden == (given > 0).sum() - bool(given[0, 0])
    assert pairs._pair(net, feat, feat, mask, mask, nothing)[4] == 0
