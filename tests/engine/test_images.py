"""Images by file, folder, list and pattern, and the reading of them."""
import cv2
import numpy as np
import pytest
from PIL import ImageFile

from cian.errors import InputError
from cian.tools.engine.images import Sample, find_images, read_image


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.JPG", "c.png"):
        cv2.imwrite(str(tmp_path / name), np.full((5, 7, 3), 90, np.uint8))
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def names(samples):
    return [sample.name for sample in samples]


def test_a_folder_gives_its_images_in_order(folder):
    assert names(find_images([str(folder)])) == ["a", "b", "c"]


def test_a_list_names_files_beside_it(folder):
    (folder / "some.txt").write_text("c.png\n\na.jpg\n")
    assert find_images([str(folder / "some.txt")]) == [Sample("c", str(folder / "c.png")),
                                                       Sample("a", str(folder / "a.jpg"))]


def test_a_pattern_and_files_join_and_the_same_file_counts_once(folder):
    assert names(find_images([str(folder / "c.png"), str(folder / "*.jpg"), str(folder / "c.png")])) == ["c",
                                                                                                         "a"]


def test_two_images_of_one_name_are_refused(folder):
    cv2.imwrite(str(folder / "a.png"), np.zeros((5, 7, 3), np.uint8))
    with pytest.raises(InputError, match="a.png: has the same name as .*a.jpg"):
        find_images([str(folder)])


def test_inputs_without_images_are_all_named(folder):
    with pytest.raises(InputError, match="2 problems: .*nowhere.jpg: names no image.*empty: names no image"):
        (folder / "empty").mkdir()
        find_images([str(folder / "nowhere.jpg"), str(folder / "empty")])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_pixels_are_those_of_opencv_in_rgb_order(tmp_path, suffix):
    path = str(tmp_path / f"image{suffix}")
    cv2.imwrite(path, np.random.RandomState(0).randint(0, 256, (23, 29, 3), np.uint8))
    np.testing.assert_array_equal(read_image(path), cv2.imread(path)[..., ::-1])


def test_a_gray_image_and_one_with_alpha_become_rgb(tmp_path):
    random = np.random.RandomState(0)
    cv2.imwrite(str(tmp_path / "gray.png"), random.randint(0, 256, (5, 7), np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), random.randint(0, 256, (5, 7, 4), np.uint8))
    assert read_image(str(tmp_path / "gray.png")).shape == read_image(str(tmp_path / "alpha.png")).shape == (
        5, 7, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_refused_by_name(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"cut{suffix}"
    cv2.imwrite(str(path), np.random.RandomState(0).randint(0, 256, (43, 29, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-500])
    for lenient in (False, True):  # which other packages make of Pillow
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
        with pytest.raises(InputError, match=f"cut{suffix}.*damaged"):
            read_image(str(path))


@pytest.mark.parametrize("content",
                         [b"", b"plain text", b"\xff\xd8\xff\xe0 not really", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match="odd.jpg"):
        read_image(str(path))
