"""Checks of image files and label maps, and the processes that do them."""
import os

import cv2
import numpy as np
import pytest

from cian.data.checks import CHUNK, check_images, check_labels, parallel
from cian.data.classes import write_label_png
from cian.errors import InputError


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / "good.jpg"
    noise = cv2.resize(np.random.RandomState(0).randint(0, 256, (9, 11, 3), np.uint8), (110, 90))
    cv2.imwrite(str(path), noise)
    return path


def problem_with(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    problems = check_images([str(path)], workers=1).problems
    assert all(problem.file == str(path) for problem in problems)
    return str(problems[0]) if problems else ""


def test_a_good_image_gives_its_size(jpeg):
    checked = check_images([str(jpeg)], workers=1)
    assert not checked.problems and checked.sizes.tolist() == [[90, 110]]


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_image_is_named(tmp_path, jpeg, part):
    content = jpeg.read_bytes()
    assert "is a damaged JPEG" in problem_with(tmp_path, content[:int(part * len(content))])


def test_a_hole_in_an_image_is_named_though_opencv_decodes_it(tmp_path, jpeg):
    content = bytearray(jpeg.read_bytes())
    middle = len(content) * 2 // 3
    content[middle:middle + 400] = bytes(400)
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
    assert "is a damaged JPEG (Corrupt JPEG data" in problem_with(tmp_path, bytes(content))


@pytest.mark.parametrize(("content", "problem"),
                         [(b"", "is empty"), (b"\xff\xd8", "is a damaged JPEG"),
                          (b"\xff\xd8" + b"x" * 500, "is a damaged JPEG"), (b"GIF89a", "is not a JPEG")])
def test_files_that_are_no_images_are_named(tmp_path, content, problem):
    assert problem in problem_with(tmp_path, content)


def test_a_missing_image_is_named(tmp_path):
    assert [str(problem) for problem in check_images(
        [str(tmp_path / "x.jpg")]).problems] == [f"{tmp_path / 'x.jpg'}: does not exist"]


def test_a_png_under_the_name_of_a_jpeg_is_named(tmp_path):
    assert "is not a JPEG file; convert it" in problem_with(
        tmp_path, cv2.imencode(".png", np.zeros((5, 5, 3), np.uint8))[1].tobytes())


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_does_not_hide_another_and_order_is_kept(tmp_path, jpeg, workers):
    paths = []
    for number in range(3 * CHUNK + 5):
        paths.append(str(tmp_path / f"{number}.jpg"))
        cv2.imwrite(paths[-1], np.zeros((10 + number, 20, 3), np.uint8))
    for number in (0, 17, 40):
        os.truncate(paths[number], 100)
    os.unlink(paths[30])
    checked = check_images(paths, workers=workers)
    assert [problem.file for problem in checked.problems] == [paths[number] for number in (0, 17, 30, 40)]
    good = [number for number in range(len(paths)) if number not in (0, 17, 30, 40)]
    assert checked.sizes[good, 0].tolist() == [10 + number for number in good]


def test_label_maps_of_another_size_are_named_unless_the_image_is_unknown(tmp_path):
    path = tmp_path / "a.png"
    write_label_png(path, np.zeros((7, 11), np.uint8))
    problems = check_labels([str(path)] * 3, 5, sizes=np.array([[7, 11], [11, 7], [0, 0]])).problems
    assert [str(problem) for problem in problems] == [
        f"{path}: is 11x7 pixels, but its image is 7x11; make it again at the size of the image"]


def test_values_that_are_no_class_are_named(tmp_path):
    write_label_png(tmp_path / "a.png", np.full((3, 4), 5))
    assert "holds the value 5, but there are 5 classes" in str(check_labels([str(tmp_path / "a.png")],
                                                                            5).problems[0])


def _die(path):
    if path == "image 40":
        os._exit(9)
    return path


def _fail(item):
    if item == 40:
        raise KeyError(item)
    return item


def test_a_process_that_dies_ends_in_a_clean_error():
    with pytest.raises(InputError, match="^image [0-9]+: a process died while it read"):
        list(parallel(_die, [f"image {number}" for number in range(100)], 2))


def test_an_exception_in_a_process_surfaces():
    with pytest.raises(KeyError, match="40"):
        list(parallel(_fail, range(100), 2))


def test_results_may_be_left_unread():
    results = parallel(_fail, range(41, 10_000), 2)
    assert [next(results) for _ in range(3)] == [41, 42, 43]
    results.close()


@pytest.mark.timeout(120)
def test_processes_start_after_opencv_has_used_its_threads():
    import mxnet  # noqa: F401 - a fork hangs only in processes that have loaded it

    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        cv2.resize(np.zeros((1100, 1300, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        assert list(parallel(abs, range(100), 2)) == list(range(100))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)
