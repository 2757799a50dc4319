"""The command line of the figures."""
import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import write_label_png
from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.params import save_params
from cian.tools.visualize import main

CLASSES = ["background", "cat", "dog"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "snapshot"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"),
                    np.random.RandomState(0).randint(0, 256, (33, 41, 3), np.uint8))
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>")
        write_label_png(root / "pred" / f"{name}.png", np.ones((33, 41), np.uint8))
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for affinity, folder in (("cross", "snapshot"), ("none", "vanilla")):
        mx.random.seed(1)
        net = build_model("resnet18_largefov", tiny=True, num_classes=3, affinity=affinity)
        net.initialize(mx.init.Normal(0.3))
        (root / folder).mkdir(exist_ok=True)
        save_params(net, root / folder / "resnet18_largefov-0000.params",
                    {"network": net.settings, "classes": CLASSES})
    return root


def arguments(tree, out, *more):
    return ["--data", str(tree), "--classes", str(tree / "classes.txt"), "--snapshot", str(tree / "snapshot"),
            "--out", str(out), *more]


def test_pairs_and_gallery_are_drawn_and_joined_in_a_page(tree, tmp_path, capsys):
    assert main(arguments(tree, tmp_path, "--partners", "1", "--pair", "b", "a", "--predictions",
                          f"ours={tree / 'pred'}")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.html", "gallery.png", "pair-a-b.png",
                                                                "pair-b-a.png"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "figures.html")
    assert (tmp_path / "figures.html").read_text().count("data:image/png") == 3


def test_two_files_are_enough_for_a_pair(tree, tmp_path):
    files = [str(tree / "JPEGImages" / f"{name}.jpg") for name in "ab"]
    assert main(["--checkpoint", str(tree / "snapshot"), "--pair", *files, "--out", str(tmp_path), "--class",
                 "dog", "--pixel", "3,4"]) == 0
    assert (tmp_path / "pair-a-b.png").exists()


@pytest.mark.parametrize("wrong, message", [
    ([], "nothing to draw"),
    (["--pair", "a", "nowhere"], "nowhere.jpg: does not exist"),
    (["--predictions", "pred"], "'pred' is not of the form TITLE=FOLDER"),
    (["--predictions", "ours=/nowhere"], "a.png: does not exist"),
    (["--partners", "1", "--class", "cow"], "unknown class 'cow'"),
])
def test_wrong_input_is_one_line(tree, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        main(arguments(tree, tmp_path, *wrong))


def test_a_network_without_affinity_has_no_affinity_to_draw(tree, tmp_path):
    with pytest.raises(InputError, match="without affinity"):
        main(arguments(tree, tmp_path, "--pair", "a", "b", "--checkpoint", str(tree / "vanilla")))


def test_what_is_needed_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="no network was named"):
        main(["--pair", "a", "b", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="no data set was named"):
        main(["--predictions", "ours=pred", "--out", str(tmp_path)])
