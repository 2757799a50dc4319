"""Figures 3 and 4: what the pictures show is what the network computed."""
import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import palette, write_label_png
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.tools.engine.prediction.pictures import (
    Panel,
    compare_pair,
    draw_grid,
    enlarge,
    gallery,
    heat,
    label_picture,
    mark,
    pairs_by_class,
    signed_heat,
    write_gallery,
    write_pair,
)
from cian.tools.engine.report import Page

CLASSES = ("background", "cat", "dog")


@pytest.fixture(scope="module")
def net():
    mx.random.seed(5)
    net = build_model("resnet18_largefov", tiny=True, num_classes=3)
    net.initialize(mx.init.Normal(0.3))
    return net


@pytest.fixture(scope="module")
def images():
    random = np.random.RandomState(0)
    return [random.randint(0, 256, (*size, 3), np.uint8) for size in ((41, 57), (49, 33))]


@pytest.fixture
def tree(tmp_path, images):
    """Four images with truth; a and c show a cat, b and c a dog, d a cat."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name, labels in {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["cat"]}.items():
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), images[0])
        objects = "".join(f"<object><name>{label}</name><difficult>0</difficult></object>"
                          for label in labels)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        write_label_png(tmp_path / "SegmentationClassAug" / f"{name}.png", np.full((41, 57), 2, np.uint8))
        write_label_png(tmp_path / "pred" / f"{name}.png", np.ones((41, 57), np.uint8))
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return DatasetTree(tmp_path, classes=tmp_path / "classes.txt")


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_the_pixels_affinity_is_its_column_of_the_matrix(net, images):
    query, reference = images
    batches = [mx.nd.array(image.transpose(2, 0, 1)[None]) for image in images]
    found = net.visual(*batches)
    view = compare_pair(net, query, reference, CLASSES, class_index=1, pixel=(56, 40))
    rows, columns = found["raw"].shape[1:]
    last = found["affinity_cross"].asnumpy()[..., rows * columns - 1]
    np.testing.assert_array_equal(view.panels["pixel_cross"].picture, heat(reference, last))
    np.testing.assert_array_equal(view.panels["average_self"].picture,
                                  heat(query, found["affinity_self"].asnumpy().mean(-1)))


def test_activations_are_above_background_and_share_one_scale(net, images):
    query, reference = images
    found = {key: value.asnumpy()
             for key, value in net.visual(*[mx.nd.array(i.transpose(2, 0, 1)[None]) for i in images]).items()}
    activation = {key: value[2] - value[0] for key, value in found.items() if not key.startswith("affinity")}
    np.testing.assert_allclose(activation["raw"] + activation["residual_cross"],
                               activation["augmented_cross"], rtol=1e-4)
    limit = max(np.abs(value).max() for value in activation.values())
    view = compare_pair(net, query, reference, CLASSES, class_index=2)
    np.testing.assert_array_equal(view.panels["activation_residual_cross"].picture,
                                  signed_heat(query, activation["residual_cross"], limit))
    y, x = np.unravel_index(activation["augmented_self"].argmax(), activation["augmented_self"].shape)
    assert view.pixel == (min(8 * x, 56), min(8 * y, 40))


def test_the_figure_has_a_row_of_activations_and_one_of_classes_for_self_and_for_cross(net, images):
    rows = compare_pair(net, *images, CLASSES).rows()
    assert [len(row) for row in rows] == [5] * 4
    assert [row[1].title for row in rows] == ["average self-affinity", "self-affinity of the pixel",
                                              "average cross-affinity", "cross-affinity of the pixel"]
    assert decoded(draw_grid(rows)).shape[1] > 1000


def test_a_class_and_a_pixel_that_do_not_exist_are_refused(net, images):
    with pytest.raises(InputError, match="no class 3"):
        compare_pair(net, *images, CLASSES, class_index=3)
    with pytest.raises(InputError, match="57,0 is outside of the query's 57x41"):
        compare_pair(net, *images, CLASSES, pixel=(57, 0))


def test_heat_is_strongest_where_the_values_are():
    image = np.full((17, 17, 3), 128, np.uint8)
    values = np.zeros((3, 3))
    values[1, 2] = 5
    brightness = heat(image, values).astype(int).sum(axis=2)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (8, 16)


def test_signed_heat_is_red_above_and_blue_below():
    image = np.full((9, 9, 3), 128, np.uint8)
    picture = signed_heat(image, np.array([[-1.0, 1.0]]), limit=1).astype(int)
    assert picture[4, 0, 2] > picture[4, 0, 0] + 40 and picture[4, 8, 0] > picture[4, 8, 2] + 40
    assert np.ptp(picture[4, 4]) <= 4  # zero is colourless


def test_maps_are_enlarged_corner_to_corner():
    np.testing.assert_allclose(enlarge(np.array([[0.0, 1.0]]), 1, 5)[0], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)


def test_a_mark_leaves_the_image_itself_alone():
    image = np.zeros((40, 40, 3), np.uint8)
    assert mark(image, (20, 20)).any() and not image.any()


def test_label_pictures_have_vocs_colours_and_gray_where_ignored():
    picture = label_picture(np.array([[0, 2, 255]], np.uint8))
    np.testing.assert_array_equal(picture[0, :2], palette()[[0, 2]])
    assert np.ptp(picture[0, 2]) == 0 and picture[0, 2, 0] > 200


def test_a_grid_takes_rows_of_different_shapes():
    rows = [[Panel("wide", np.zeros((10, 40, 3), np.uint8))],
            [Panel("tall", np.zeros((40, 10, 3), np.uint8))] * 3]
    picture = decoded(draw_grid(rows, [("cat", np.array([128, 0, 0], np.uint8))]))
    assert picture.shape[0] > picture.shape[1] > 300
    assert (picture.reshape(-1, 3) == [128, 0, 0]).all(1).any()  # the legend's colour


def test_the_gallery_shows_every_column_in_its_colours():
    labels = [np.full((30, 40), value, np.uint8) for value in (1, 2)]
    picture = decoded(gallery([np.full((30, 40, 3), 90, np.uint8)] * 2, [("ours", labels)],
                              CLASSES)).reshape(-1, 3)
    for value in (1, 2):
        assert (picture == palette()[value]).all(1).sum() > 1000


def test_partners_share_a_class_and_come_next_in_a_circle(tree):
    assert pairs_by_class(tree, "val", 4) == [("a", "c"), ("b", "c"), ("c", "d"), ("d", "a")]


def test_images_without_partner_are_passed_over_and_a_list_of_them_is_refused(tree, tmp_path):
    (tmp_path / "three.txt").write_text("d\nb\nc\n")
    assert pairs_by_class(tree, tmp_path / "three.txt", 1) == [("d", "c")]
    (tmp_path / "three.txt").write_text("b\nd\na\n")
    assert pairs_by_class(tree, tmp_path / "three.txt", 1) == [("d", "a")]
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="two.txt: has no two images that share a class"):
        pairs_by_class(tree, tmp_path / "two.txt", 1)


def test_figures_go_to_files_and_onto_the_page(tree, net, tmp_path):
    page = Page("Figures")
    pair = write_pair(tmp_path / "out", net, tree.image_path("a"), tree.image_path("c"), CLASSES,
                      class_name="dog", pixel="3, 5", page=page)
    rows = write_gallery(tmp_path / "out", tree, ["a", "b"], [("ours", tmp_path / "pred")], page=page)
    page.save(tmp_path / "out" / "page.html")
    assert pair.endswith("pair-a-c.png") and cv2.imread(pair) is not None and cv2.imread(rows) is not None
    text = (tmp_path / "out" / "page.html").read_text()
    assert text.count("data:image/png") == 2 and "activations of dog; pixel 3,5" in text


@pytest.mark.parametrize("wrong, message",
                         [({"pixel": "3"}, "'3' is no pixel"), ({"class_name": "dgo"}, "did you mean 'dog'")])
def test_wrong_words_for_pixel_and_class_are_refused(tree, net, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        write_pair(tmp_path, net, tree.image_path("a"), tree.image_path("c"), CLASSES, **wrong)
