"""Groups of common class: the queue, the even partition, the account."""
from collections import Counter

import numpy as np
import pytest

from cian.data.groups import (
    account,
    class_masks,
    class_tree,
    common_groups,
    even_groups,
    lonely_images,
    random_groups,
)


def multi_hot(rows, num_classes):
    labels = np.zeros((len(rows), num_classes), np.uint8)
    labels[:, 0] = 1
    for index, classes in enumerate(rows):
        labels[index, list(classes)] = 1
    return labels


def random_labels(seed, count, num_classes, empty=0.0):
    rng = np.random.RandomState(seed)
    labels = (rng.random_sample((count, num_classes)) < rng.random_sample(num_classes) * 0.5).astype(np.uint8)
    labels[np.arange(count), rng.randint(1, num_classes, count)] = 1
    labels[rng.random_sample(count) < empty] = 0
    labels[:, 0] = 1
    return labels


def groups_by_rescanning(order, sets, group_size):
    """The queue in its plainest form: one list, asked from the front; who was passed over goes to
    the end of who waits.
    """
    waiting, fresh, groups = [], list(order), []
    while waiting or fresh:
        group, passed = [], []
        while (waiting or fresh) and len(group) < group_size:
            image = (waiting or fresh).pop(0)
            (group if all(sets[image] & sets[member] for member in group) else passed).append(image)
        if len(group) < group_size:
            break
        groups.append(tuple(group))
        waiting += passed
    return groups


@pytest.mark.parametrize("group_size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(7))
def test_the_queue_gives_the_groups_of_a_plain_rescan(seed, group_size):
    labels = random_labels(seed, 211, 3 + 4 * seed, empty=0.01 * (seed % 2))
    sets = [set(np.flatnonzero(row[1:])) for row in labels]
    order = np.random.RandomState(seed).permutation(len(labels)).tolist()
    groups = common_groups(order, class_masks(labels), group_size)
    assert groups == groups_by_rescanning(order, sets, group_size)
    assert groups, "an empty epoch would make the comparison empty"


def test_the_queue_by_hand():
    #                       0    1    2    3    4    5    6
    labels = multi_hot([{1}, {2}, {2}, {1}, {3}, {2, 3}, {2}], 4)
    assert common_groups(range(7), class_masks(labels), 2) == [(0, 3), (1, 2), (4, 5)]


def test_waiting_images_that_a_search_did_not_reach_come_before_those_it_passed_over():
    labels = multi_hot([{1}, {2}, {3}, {2, 3}, {1}, {2}, {3}, {3}], 4)
    # 0 passes over 1, 2, 3 and takes 4; 1 passes over 2 and takes 3; 2 waits alone, passes over 5
    # and takes 6; 5 ends the epoch.
    assert common_groups(range(8), class_masks(labels), 2) == [(0, 4), (1, 3), (2, 6)]
    labels = multi_hot([{1}, {2}, {3}, {2}, {4}, {1}, {3}, {4}], 5)
    # 0 passes over 1-4; 1 passes over 2 and takes 3; now 4 waits before 2.
    assert common_groups(range(8), class_masks(labels), 2) == [(0, 5), (1, 3), (4, 7), (2, 6)]


def test_background_never_makes_a_pair():
    labels = multi_hot([{1}, {2}, {1}], 3)
    assert labels[:, 0].all()
    assert class_masks(labels) == [1, 2, 1]
    assert common_groups(range(3), class_masks(labels), 2) == [(0, 2)]


def test_masks_of_many_classes_have_a_bit_for_each():
    labels = random_labels(5, 17, 131)
    for row, mask in zip(labels, class_masks(labels)):
        assert mask == sum(1 << int(index) for index in np.flatnonzero(row[1:]))


def test_an_image_without_label_or_with_a_class_of_its_own_is_lonely():
    labels = multi_hot([{1}, {1}, {2}, set(), {1, 3}, {4}, {4}], 6)
    assert lonely_images(labels).tolist() == [2, 3]


def test_even_groups_share_a_class_and_leave_nobody_out():
    for seed in range(12):
        group_size = 2 + seed % 3
        labels = random_labels(seed, 97 + seed, 3 + seed)
        groups = even_groups(labels, group_size, np.random.RandomState(seed))
        served = np.bincount(groups.ravel(), minlength=len(labels))
        assert served.min() >= 1
        trees = labels.shape[1] - 1 - len(class_tree(labels))
        assert (served - 1).sum() <= (
            group_size - 1) * trees, "only the root of each tree of classes may need fillers here"
        for group in groups:
            assert labels[group, 1:].all(axis=0).any()
            assert len(set(group)) == group_size


def test_even_groups_partition_the_images_where_bridging_images_allow_it():
    labels = multi_hot([{1}, {1}, {1, 2}, {2}, {2}, {3}, {3, 2}, {3}], 4)
    for seed in range(50):
        groups = even_groups(labels, 2, np.random.RandomState(seed))
        assert sorted(groups.ravel()) == list(range(8)), f"seed {seed}"


def test_a_lonely_image_is_grouped_with_itself_and_a_small_class_fills_up_from_its_own():
    labels = multi_hot([{1}, set(), {2}, {2}, {3}, {3}, {3}, {3}], 5)
    groups = {tuple(sorted(group)) for group in even_groups(labels, 3, np.random.RandomState(0)).tolist()}
    assert {(0, 0, 0), (1, 1, 1)} <= groups
    assert {(2, 2, 3), (2, 3, 3)} & groups
    assert all(set(group) <= {4, 5, 6, 7} and len(set(group)) == 3
               for group in groups - {(0, 0, 0), (1, 1, 1), (2, 2, 3), (2, 3, 3)})


def test_partners_of_even_groups_are_drawn_fairly():
    """Six images of a class: 15 pairs, equally often. An image of two classes: half of the time
    with either.
    """
    rng, pairs, partners, rounds = np.random.RandomState(0), Counter(), Counter(), 3000
    one_class = multi_hot([{1}] * 6, 2)
    two_classes = multi_hot([{1, 2}] * 6 + [{1}] * 8 + [{2}] * 8, 3)
    for _ in range(rounds):
        pairs.update(tuple(sorted(pair)) for pair in even_groups(one_class, 2, rng).tolist())
        partners.update(image for pair in even_groups(two_classes, 2, rng).tolist() if 0 in pair
                        for image in pair)
    expected = rounds * 3 / 15
    assert len(pairs) == 15
    # chi-square, 14 degrees, p = 0.001
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 36.1
    first, second = (sum(partners[image] for image in images) for images in (range(6, 14), range(14, 22)))
    assert abs(first - second) < 4 * (first + second) ** 0.5


def test_the_class_tree_joins_by_the_most_shared_images_and_lists_leaves_first():
    labels = multi_hot([{1, 2}, {1, 2}, {2, 3}, {1, 3}, {2, 3}, {2, 3}, {5}], 6)
    # classes 1, 2, 3 without background: 0-1 shares 2, 1-2 shares 3, 0-2 shares 1
    assert class_tree(labels) == [(2, 1), (1, 0)]


def test_random_groups_are_consecutive_and_drop_the_rest():
    assert random_groups(np.array([4, 2, 0, 1, 3]), 2).tolist() == [[4, 2], [0, 1]]


def test_the_account_by_hand():
    labels = multi_hot([{1}, {1, 2}, {2}, {3}, {1, 2}], 4)
    result = account(np.array([[0, 1], [1, 4], [3, 3], [0, 3]]), labels)
    assert result.served.tolist() == [2, 2, 0, 3, 1]
    assert (result.used, result.dropped, result.groups, result.pairs) == (4, 1, 4, 4)
    assert result.pairs_by_class.tolist() == [0, 2, 1, 1]
    assert result.pairs_without_class == 1
    assert result.images_by_class.tolist() == [5, 3, 3, 1]


def test_the_account_of_larger_groups_counts_every_pair():
    labels = multi_hot([{1}, {1, 2}, {2}], 3)
    result = account(np.array([[0, 1, 2]]), labels)
    assert (result.pairs, result.pairs_by_class.tolist(), result.pairs_without_class) == (3, [0, 1, 1], 1)
