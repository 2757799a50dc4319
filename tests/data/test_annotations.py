"""Image-level labels."""
import os

import numpy as np
import pytest

from cian.data.annotations import multi_hot, read_labels_file, read_xml_labels
from cian.data.classes import ClassTable
from cian.data.tree import DatasetTree
from cian.errors import InputError, Problems

CLASSES = ClassTable(["background", "cat", "dog", "bird"])


def xml(*objects):
    return "<annotation>" + "".join(f"<object><name>{name}</name>"
                                    + ("" if difficult is None else f"<difficult>{difficult}</difficult>")
                                    + "</object>" for name, difficult in objects) + "</annotation>"


@pytest.mark.parametrize(("objects", "labels"), [
    ([("dog", 0), ("cat", 0), ("dog", 0)], (1, 2)),  # sorted, each once
    ([("bird", 0), ("cat", 1)], (3,)),  # difficult objects do not count
    ([("bird", 1), ("cat", 1)], (1, 3)),  # unless all are
    ([("dog", None)], (2,)),
    ([(" dog ", 0)], (2,))])
def test_labels_are_those_of_the_original_rule(tmp_path, objects, labels):
    (tmp_path / "a.xml").write_text(xml(*objects))
    assert read_xml_labels(tmp_path / "a.xml", CLASSES) == labels


def test_parts_of_objects_are_no_objects(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>dog</name><part><name>head</name></part></object><other><object><name>x</name></object></other></annotation>")
    assert read_xml_labels(tmp_path / "a.xml", CLASSES) == (2,)


@pytest.mark.parametrize(("text", "problem"),
                         [(xml(("cow", 0)), "object 1: unknown class 'cow'"),
                          (xml(("background", 0)), "no label of an image"), (xml(), "names no object"),
                          (xml(("cat", "maybe")), "'difficult' is 0 or 1, not 'maybe'"),
                          ("<annotation><object/></annotation>", "unknown class ''"),
                          ("<annotation>", "not valid XML"), ("", "is empty"), (None, "does not exist")])
def test_a_wrong_annotation_is_named(tmp_path, text, problem):
    path = tmp_path / "a.xml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_xml_labels(path, CLASSES)
    assert caught.value.file == str(path)


def test_entities_that_explode_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    layers = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    path.write_text('<!DOCTYPE a [<!ENTITY e0 '
                    f'"0123456789">{layers}]><annotation><object><name>&e11;</name></object></annotation>')
    with pytest.raises(InputError, match="not valid XML"):
        read_xml_labels(path, CLASSES)


def test_a_labels_file_gives_sorted_classes_by_name(tmp_path):
    (tmp_path / "labels.txt").write_text("a dog cat\n\nb bird bird\n")
    assert read_labels_file(tmp_path / "labels.txt", CLASSES) == {"a": (1, 2), "b": (3,)}


def test_all_problems_of_a_labels_file_are_named(tmp_path):
    (tmp_path / "labels.txt").write_text("a cow\nb cat\nb dog\nc\nd background\n")
    with pytest.raises(Problems) as caught:
        read_labels_file(tmp_path / "labels.txt", CLASSES)
    assert [problem.field for problem in caught.value.problems] == ["line 1 (a)", "line 3 (b)", "line 4 (c)",
                                                                    "line 5 (d)"]


def test_an_array_file_gives_the_same_labels(tmp_path):
    np.savez(tmp_path / "labels.npz", names=np.array(["a", "b"]),
             labels=np.array([[1, 1, 0], [0, 0, 1]], np.uint8))
    assert read_labels_file(tmp_path / "labels.npz", CLASSES) == {"a": (1, 2), "b": (3,)}


@pytest.mark.parametrize(("names", "labels", "problem"),
                         [(["a"], np.ones((1, 4)), "'labels' has shape"), (
    ["a"], np.ones((2, 3)), "'labels' has shape"), (["a", "a"], np.ones((2, 3)), "a: occurs twice"),
                          (["a", "b"], np.array([[0, 0, 0], [0, 1, 0]]), "a: has no label")])
def test_a_wrong_array_file_is_named(tmp_path, names, labels, problem):
    np.savez(tmp_path / "labels.npz", names=np.array(names), labels=labels)
    with pytest.raises(InputError, match=problem):
        read_labels_file(tmp_path / "labels.npz", CLASSES)


@pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"neither", None])
def test_an_array_file_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "labels.npz").write_bytes(content)
    with pytest.raises(InputError, match="labels.npz"):
        read_labels_file(tmp_path / "labels.npz", CLASSES)


def test_an_array_file_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "labels.npz", names=np.array(["a", None], object), labels=np.ones((2, 3)))
    with pytest.raises(InputError, match="not an array file"):
        read_labels_file(tmp_path / "labels.npz", CLASSES)


def test_the_background_is_in_every_image():
    assert multi_hot([(1, 3), (), (2,)], 4).tolist() == [[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0]]


def test_a_tree_names_every_image_without_a_good_label(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=6)
    os.unlink(os.path.join(root, "Annotations", "image_01.xml"))
    with open(os.path.join(root, "Annotations", "image_04.xml"), "w", encoding="utf-8") as stream:
        stream.write(xml(("cow", 0)))
    tree = DatasetTree(root, classes=os.path.join(root, "classes.txt"))
    table, problems = tree.check_labels(tree.names("train"))
    assert [os.path.basename(problem.file) for problem in problems] == ["image_01.xml", "image_04.xml"]
    assert table.shape == (6, 4) and table[:, 0].all() and not table[[1, 4],
                                                                     1:].any() and table[[0, 2, 3, 5],
                                                                                         1:].any(axis=1).all()
    with pytest.raises(Problems, match="2 problems"):
        tree.labels(tree.names("train"))


def test_a_labels_file_stands_for_the_annotations(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=2)
    (tmp_path / "labels.txt").write_text("image_00 bird\nimage_09 cat\n")
    tree = DatasetTree(root, classes=os.path.join(root, "classes.txt"), labels_file=tmp_path / "labels.txt")
    assert tree.labels(["image_00"]).tolist() == [[1, 0, 0, 1]]
    with pytest.raises(InputError, match="has no label for 'image_01'"):
        tree.labels(["image_00", "image_01"])


def test_a_tree_has_the_folders_of_voc_unless_others_are_named(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree")
    tree = DatasetTree(root, label_root=os.path.join(root, "seeds"), image_root=os.path.join(root, "seeds"))
    assert tree.image_path("x") == os.path.join(root, "seeds", "x.jpg")
    assert tree.annotation_path("x") == os.path.join(root, "Annotations", "x.xml")
    assert tree.mask_path("x") == os.path.join(root, "SegmentationClassAug", "x.png")
    assert tree.label_path("x") == os.path.join(root, "seeds", "x.png")


@pytest.mark.parametrize(("arguments", "problem"),
                         [({}, "no data set was named"), ({"root": "absent"}, "absent: is not a folder"),
                          ({"image_root": "absent"}, "absent: is not a folder"),
                          ({"image_root": ".", "label_root": "absent"}, "absent: is not a folder"),
                          ({"root": "."}, "JPEGImages: is not a folder")])
def test_a_wrong_folder_is_named(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=problem):
        DatasetTree(**arguments)


def test_a_folder_that_was_not_given_is_named_by_its_flag(tmp_path):
    tree = DatasetTree(image_root=tmp_path)
    with pytest.raises(InputError, match="--labels-file"):
        tree.labels(["a"])
    with pytest.raises(InputError, match="--label-root"):
        tree.label_path("a")


@pytest.mark.parametrize("text", [
    "<root><annotation>{0}</annotation></root>", "<Annotation>{0}</Annotation>",
    '<annotation xmlns="http://x">{0}</annotation>',
                                  '<a:r xmlns:a="u"><a:annotation>{0}</a:annotation></a:r>',
    '<annotations><image name="a.jpg"><box label="dog"/><tag label="cat"/></image></annotations>'])
def test_roots_and_namespaces_of_other_programs_are_read(tmp_path, text):
    objects = "".join(f"<object><name>{name}</name></object>" for name in ("dog", "cat"))
    (tmp_path / "a.xml").write_text(text.format(objects))
    assert read_xml_labels(tmp_path / "a.xml", CLASSES) == (1, 2)


@pytest.mark.parametrize(("text", "problem"), [
    ("<root/>", "has 0 <annotation> in its root <root>"), ("<r><annotation/><annotation/></r>",
                                                           "has 2 <annotation>"),
    ("<annotation><objects><object><name>dog</name></object></objects></annotation>", "but <objects>"),
    ('<annotations><image name="a"/><image name="b"/></annotations>', "a: has no label"),
    ('<annotations><image name="a"><box label="dog"/></image><image name="b"><box label="cat"/></image>'
     '</annotations>',
     "a CVAT file of 2 images")])
def test_another_layout_is_told_from_an_image_without_label(tmp_path, text, problem):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_xml_labels(tmp_path / "a.xml", CLASSES)


EXPECTED = {"2007_000032": (1, 2), "b": (3,)}


@pytest.mark.parametrize("keys", [(2007000032, "b"), ("2007_000032.jpg", "b.JPG"), (b"2007_000032", b"b"),
                                  (np.str_("2007_000032"), "b")])
@pytest.mark.parametrize("kind", [np.float32, np.uint8, bool])
def test_a_dict_of_arrays_as_the_field_has_it_is_read(tmp_path, keys, kind):
    rows = np.array([[1, 1, 0], [0, 0, 1]], kind)
    np.save(tmp_path / "cls_labels.npy", dict(zip(keys, rows)))
    assert read_labels_file(tmp_path / "cls_labels.npy", CLASSES) == EXPECTED
    if not isinstance(keys[0], int):
        np.savez(tmp_path / "l.npz", names=np.array(keys), labels=rows)
        assert read_labels_file(tmp_path / "l.npz", CLASSES) == EXPECTED


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(("content", "problem"), [
    ({"a": Harm()}, "it asks for posix.mkdir"), ([1, 2], "holds no dict"), (np.zeros((2, 3)),
                                                                            "holds no dict"),
    ({"a": np.ones(2)}, "shape .1, 2. for 1 names"), ({None: np.ones(3)}, "None is no name"),
    ({"a": np.zeros(3)}, "a: has no label")])
def test_nothing_that_a_dict_of_arrays_says_is_run(tmp_path, monkeypatch, content, problem):
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", np.array(content, object) if isinstance(content, dict) else content,
            allow_pickle=True)
    with pytest.raises(InputError, match=problem):
        read_labels_file("labels.npy", CLASSES)
    assert not os.path.exists("harm")


@pytest.mark.parametrize("value", [-1, 0.97, np.nan, 2, np.inf])
def test_a_label_is_0_or_1(tmp_path, value):
    np.savez(tmp_path / "l.npz", names=np.array(["a", "b"]), labels=np.array([[1, 0, 0], [0, value, 1]]))
    with pytest.raises(InputError, match="b: holds .*, and a label is 0 or 1"):
        read_labels_file(tmp_path / "l.npz", CLASSES)


def test_text_is_no_label(tmp_path):
    np.savez(tmp_path / "l.npz", names=np.array(["a"]), labels=np.array([["1", "0", "0"]]))
    with pytest.raises(InputError, match="a: holds '1'|a: holds np.str_"):
        read_labels_file(tmp_path / "l.npz", CLASSES)


def test_one_file_of_cvat_labels_all_its_images(tmp_path):
    (tmp_path / "annotations.xml").write_text(
        '<annotations><meta/><image name="2007_000032.jpg"><polygon label="dog"/><box label="cat"/></image>'
        '<image name="b.png"><mask label="bird"/></image></annotations>')
    assert read_labels_file(tmp_path / "annotations.xml", CLASSES) == EXPECTED


def test_names_of_a_labels_file_may_have_the_suffix_of_the_image(tmp_path):
    (tmp_path / "labels.txt").write_text("2007_000032.jpg dog cat\nb.png bird\n")
    assert read_labels_file(tmp_path / "labels.txt", CLASSES) == EXPECTED


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png"])
def test_an_image_is_found_under_every_usual_suffix(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert DatasetTree(image_root=tmp_path).image_path("a") == str(tmp_path / f"a{suffix}")
    assert DatasetTree(image_root=tmp_path).image_path("b") == str(tmp_path / "b.jpg")


@pytest.mark.parametrize(("inside", "labels"), [
    ("<object><name>dog</name><deleted>1</deleted></object><object><name>cat</name></object>", (1,)),
    ("<object><name>dog</name><difficult>True</difficult></object><object><name>cat</name></object>", (1,))])
def test_objects_that_labelme_has_deleted_do_not_count_and_truth_may_be_a_word(tmp_path, inside, labels):
    (tmp_path / "a.xml").write_text(f"<annotation>{inside}</annotation>")
    assert read_xml_labels(tmp_path / "a.xml", CLASSES) == labels


def test_cvats_format_for_videos_is_told(tmp_path):
    (tmp_path / "a.xml").write_text("<annotations><track label='dog'><box frame='0'/></track></annotations>")
    for read in (read_xml_labels, read_labels_file):
        with pytest.raises(InputError, match='not CVAT.s format "for images"'):
            read(tmp_path / "a.xml", CLASSES)
