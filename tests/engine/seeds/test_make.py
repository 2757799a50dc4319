"""Seeds: who claims a pixel, what is kept and what is refused, and Table 4's recorded choice."""
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from cian.data.classes import ClassTable, palette, read_label_png, write_label_png
from cian.data.packing import pack_images
from cian.errors import InputError
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.seeds.make import MANIFEST, assign_seeds, choose_strong, make_seeds

CLASSES = ClassTable(("background", "cat", "dog", "cow"))
LOW_CAM = SeedConfig(saliency="low_cam", background_threshold=0.06)


@pytest.fixture
def images(tmp_path):
    """Five images of distinct sizes; image k has the classes of bits of k + 1, so the fourth (3 =
    cow) has one, the third two.
    """
    names, paths, labels = [], [], np.zeros((5, 4), np.uint8)
    labels[:, 0] = 1
    for k in range(5):
        names.append(f"photo_{k}")
        paths.append(str(tmp_path / f"photo_{k}.jpg"))
        picture = np.random.RandomState(k).randint(0, 255, (13 + k, 17, 3), np.uint8)
        cv2.imwrite(paths[-1], picture)
        labels[k, 1:] = [(k + 1) >> bit & 1 for bit in range(3)]
    with pack_images(tmp_path / "records", "train", names, paths, labels, CLASSES, workers=1) as records:
        yield records


class Ramp:
    """Maps that rise from 0 on the left to 1 on the right, the same for every class; remembers how
    it was called.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, image, classes):
        self.calls.append((image.shape, tuple(classes)))
        return np.broadcast_to(np.linspace(0, 1, image.shape[1], dtype=np.float32),
                               (len(classes), *image.shape[:2]))


def test_one_claim_labels_a_pixel_and_two_or_none_ignore_it():
    #                 cat only, dog only, both,  nobody, background, background and cat, background and both
    cams = np.array([[[0.9,      0.1,      0.31,  0.3,    0.0,        0.5,                0.5]],
                     [[0.2,      0.4,      0.99,  0.2,    0.0,        0.0,                0.5]]], np.float32)
    saliency = np.array([[0.9,   0.5,      0.06,  0.06,   0.05,       0.01,               0.0]], np.float32)
    seeds = assign_seeds(cams, (1, 3), saliency, 0.3, 0.06)
    assert seeds.dtype == np.uint8
    np.testing.assert_array_equal(seeds, [[1, 3, 255, 255, 0, 255, 255]])


def test_largest_map_may_win_against_other_classes_but_not_against_the_background():
    cams = np.array([[[0.9, 0.1, 0.31, 0.3, 0.8]],
                     [[0.4, 0.4, 0.99, 0.2, 0.5]]], np.float32)
    saliency = np.array([[0.9, 0.5, 0.9, 0.9, 0.01]], np.float32)
    np.testing.assert_array_equal(assign_seeds(cams, (1, 3), saliency, 0.3, 0.06, "largest"),
                                  [[1, 3, 3, 255, 255]])


def test_assignment_agrees_with_a_loop_over_pixels():
    random = np.random.RandomState(7)
    cams, saliency = random.rand(3, 11, 13), random.rand(11, 13)
    seeds = assign_seeds(cams, (2, 1, 3), saliency, 0.6, 0.4)
    for y in range(11):
        for x in range(13):
            claims = [value for cam, value in zip(cams, (2, 1, 3))
                      if cam[y, x] > 0.6] + ([0] if saliency[y, x] < 0.4 else [])
            assert seeds[y, x] == (claims[0] if len(claims) == 1 else 255)


def test_image_without_classes_has_background_seeds_only():
    seeds = assign_seeds(np.zeros((0, 3, 5), np.float32), (), np.full((3, 5), 0.01, np.float32), 0.3, 0.06)
    assert not seeds.any()


def test_maps_that_do_not_fit_are_a_defect_and_not_a_seed():
    with pytest.raises(ValueError, match="do not fit"):
        assign_seeds(np.zeros((2, 3, 5)), (1,), np.zeros((3, 5)), 0.3, 0.06)


def test_seeds_are_palette_pngs_of_the_image_level_labels_alone(images, tmp_path):
    ramp = Ramp()
    assert make_seeds(LOW_CAM, images, ramp, tmp_path / "seeds", {"classifier": "x"}, workers=2) == 5
    assert ramp.calls == [((13 + k, 17, 3), tuple(c for c in (1, 2, 3) if (k + 1) >> (c - 1) & 1))
                          for k in range(5)]
    seeds = read_label_png(tmp_path / "seeds" / "photo_0.png")
    np.testing.assert_array_equal(seeds[4], [0] + [255] * 4 + [1] * 12)  # 1/16 > 0.06, 5/16 > 0.3
    # two classes claim the same pixels
    assert set(np.unique(read_label_png(tmp_path / "seeds" / "photo_2.png"))) == {0, 255}
    with Image.open(tmp_path / "seeds" / "photo_0.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.reshape(picture.getpalette(), (-1, 3)), palette())


def test_image_is_given_to_the_network_as_rgb(images, tmp_path):
    seen = {}
    def maps(image, classes):
        seen[image.shape] = image
        return np.ones((len(classes), *image.shape[:2]), np.float32)
    make_seeds(LOW_CAM, images, maps, tmp_path / "seeds", {})
    np.testing.assert_array_equal(seen[13, 17, 3], images.image(0)[..., ::-1])


def test_finished_seeds_are_kept_and_only_missing_ones_made(images, tmp_path):
    make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {})
    first = (tmp_path / "seeds" / "photo_3.png").read_bytes()
    (tmp_path / "seeds" / "photo_3.png").unlink()
    before = (tmp_path / "seeds" / "photo_1.png").stat().st_mtime_ns
    ramp = Ramp()
    assert make_seeds(LOW_CAM, images, ramp, tmp_path / "seeds", {}) == 1
    assert ramp.calls == [((16, 17, 3), (3,))]
    assert (tmp_path / "seeds" / "photo_3.png").read_bytes() == first
    assert (tmp_path / "seeds" / "photo_1.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("changed",
                         [{"config": replace(LOW_CAM, foreground_threshold=0.4)},
                          {"config": replace(LOW_CAM, mirror=True)}, {"source": {"classifier": "y"}}])
def test_seeds_of_other_settings_are_never_mixed(images, tmp_path, changed):
    make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {"classifier": "x"})
    with pytest.raises(InputError, match="other settings .(seeds|source) changed"):
        make_seeds(changed.get("config", LOW_CAM), images, Ramp(), tmp_path / "seeds",
                   changed.get("source", {"classifier": "x"}))


def test_folder_of_unknown_pngs_is_refused(images, tmp_path):
    write_label_png(tmp_path / "seeds" / "photo_0.png", np.zeros((3, 5), np.uint8))
    with pytest.raises(InputError, match="no seeds.json that says how they were made"):
        make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {})


def test_damaged_manifest_is_named(images, tmp_path):
    make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {})
    (tmp_path / "seeds" / MANIFEST).write_text('{"hash"')
    with pytest.raises(InputError, match="seeds.json: is no .*not valid JSON"):
        make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {})


def test_saliency_folder_and_choice_must_agree(images, tmp_path):
    for config in (replace(LOW_CAM, saliency="images"), replace(LOW_CAM, saliency_root=str(tmp_path)),
                   replace(LOW_CAM, saliency="images", saliency_root=str(tmp_path / "nowhere"))):
        with pytest.raises(InputError, match="seeds.saliency_root"):
            make_seeds(config, images, Ramp(), tmp_path / "seeds", {})
    assert not (tmp_path / "seeds").exists()


def test_saliency_images_decide_the_background(images, tmp_path):
    config = replace(LOW_CAM, saliency="images", saliency_root=str(tmp_path / "maps"))
    (tmp_path / "maps").mkdir()
    for k in range(5):
        saliency = np.full((13 + k, 17), 255, np.uint8)
        saliency[:, :3] = 15  # 15 / 255 < 0.06
        saliency[:, 16:] = 15
        cv2.imwrite(str(tmp_path / "maps" / f"photo_{k}.png"), saliency)
    make_seeds(config, images, Ramp(), tmp_path / "seeds", {})
    np.testing.assert_array_equal(read_label_png(tmp_path / "seeds" / "photo_0.png")[0],
                                  [0] * 3 + [255] * 2 + [1] * 11 + [255])


def test_missing_saliency_image_stops_by_name(images, tmp_path):
    config = replace(LOW_CAM, saliency="images", saliency_root=str(tmp_path))
    with pytest.raises(InputError, match="photo_0.png"):
        make_seeds(config, images, Ramp(), tmp_path / "seeds", {}, workers=2)


def test_watcher_sees_every_image_even_if_all_is_done(images, tmp_path):
    make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {})
    seen = []
    def watch(name, cams, classes):
        seen.append((name, len(cams)))
    assert make_seeds(LOW_CAM, images, Ramp(), tmp_path / "seeds", {}, watch=watch) == 0
    assert sorted(seen) == [("photo_0", 1), ("photo_1", 1), ("photo_2", 2), ("photo_3", 1), ("photo_4", 2)]


def test_strong_choice_is_repeatable_nested_and_of_the_right_size():
    names = [f"{k:03d}" for k in range(211)]
    five, ten = choose_strong(names, 0.05, 3), choose_strong(names, 0.10, 3)
    assert len(five) == 11 and len(ten) == 21
    assert set(five) < set(ten)
    assert choose_strong(names[::-1], 0.05, 3) == five
    assert choose_strong(names, 0.05, 4) != five
    assert choose_strong(names, 0, 3) == [] and choose_strong(names, 1, 3) == names
    with pytest.raises(InputError, match="strong_ratio"):
        choose_strong(names, 1.5, 0)


@pytest.fixture
def masks(images, tmp_path):
    for k, name in enumerate(images.names):
        write_label_png(tmp_path / "masks" / f"{name}.png", np.full((13 + k, 17), 2, np.uint8))
    return tmp_path / "masks"


def test_chosen_seeds_become_ground_truth_and_the_rest_stays(images, masks, tmp_path):
    make_seeds(LOW_CAM, images, Ramp(), tmp_path / "weak", {})
    ramp = Ramp()
    make_seeds(replace(LOW_CAM, strong_ratio=0.4, strong_seed=1), images, ramp, tmp_path / "strong", {},
               strong_masks=masks)
    choice = json.loads((tmp_path / "strong" / MANIFEST).read_text())["strong"]
    assert choice == {"ratio": 0.4, "seed": 1, "of": 5, "names": choose_strong(images.names, 0.4, 1)}
    assert len(choice["names"]) == 2
    for name in images.names:
        seeds = (tmp_path / "strong" / f"{name}.png").read_bytes()
        if name in choice["names"]:
            assert (read_label_png(tmp_path / "strong" / f"{name}.png") == 2).all()
        else:
            assert seeds == (tmp_path / "weak" / f"{name}.png").read_bytes()
    assert sum(bool(classes) for _, classes in ramp.calls) == 3


def test_masks_of_the_chosen_names_alone_are_opened(images, masks, tmp_path):
    strong = choose_strong(images.names, 0.2, 0)
    for name in images.names:
        if name not in strong:
            (masks / f"{name}.png").unlink()
    assert make_seeds(replace(LOW_CAM, strong_ratio=0.2), images, Ramp(), tmp_path / "strong", {},
                      strong_masks=masks) == 5


def test_another_choice_is_not_mixed_in(images, masks, tmp_path):
    make_seeds(replace(LOW_CAM, strong_ratio=0.4), images, Ramp(), tmp_path / "strong", {},
               strong_masks=masks)
    with pytest.raises(InputError, match="strong changed"):
        make_seeds(replace(LOW_CAM, strong_ratio=0.4, strong_seed=9), images, Ramp(), tmp_path / "strong", {},
                   strong_masks=masks)


def test_ratio_and_masks_come_together(images, masks, tmp_path):
    with pytest.raises(InputError, match="name the folder of NAME.png with --strong-masks"):
        make_seeds(replace(LOW_CAM, strong_ratio=0.4), images, Ramp(), tmp_path / "strong", {})
    with pytest.raises(InputError, match="is not read with seeds.strong_ratio=0"):
        make_seeds(LOW_CAM, images, Ramp(), tmp_path / "strong", {}, strong_masks=masks)
    assert not (tmp_path / "strong").exists()


def test_mask_of_another_size_is_named(images, masks, tmp_path):
    for name in images.names:
        write_label_png(masks / f"{name}.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match="masks.*is 4x3 pixels, its image 17x"):
        make_seeds(replace(LOW_CAM, strong_ratio=1.0), images, Ramp(), tmp_path / "strong", {},
                   strong_masks=masks)


def with_maps(tmp_path, images, value=255):
    for name, (height, width) in zip(images.names, images.sizes):
        saliency = np.zeros((height, width), np.uint8)
        saliency[:, width // 2:] = value
        cv2.imwrite(str(tmp_path / "maps" / f"{name}.png"), saliency)
    return SeedConfig(saliency="images", saliency_root=str(tmp_path / "maps"))


def test_a_saliency_map_of_another_content_makes_its_seed_anew(images, tmp_path):
    (tmp_path / "maps").mkdir()
    config = with_maps(tmp_path, images)
    assert make_seeds(config, images, Ramp(), tmp_path / "seeds", {}) == 5
    assert make_seeds(config, images, Ramp(), tmp_path / "seeds", {}) == 0
    height, width = images.sizes[3]
    cv2.imwrite(str(tmp_path / "maps" / "photo_3.png"), np.full((height, width), 255, np.uint8))
    assert make_seeds(config, images, Ramp(), tmp_path / "seeds", {}) == 1
    assert not (read_label_png(tmp_path / "seeds" / "photo_3.png") == 0).any()


def test_saliency_of_0_and_1_is_refused(images, tmp_path):
    (tmp_path / "maps").mkdir()
    with pytest.raises(InputError, match="photo_0.png: holds 0 and 1 alone, and saliency is 0..255"):
        make_seeds(with_maps(tmp_path, images, 1), images, Ramp(), tmp_path / "seeds", {})


def test_seeds_without_any_class_are_refused(images, tmp_path):
    def maps(image, classes):
        return np.zeros((len(classes), *image.shape[:2]), np.float32)
    with pytest.raises(InputError, match="seeds: not one pixel of the seeds has a class, all are background"):
        make_seeds(LOW_CAM, images, maps, tmp_path / "seeds", {})


def test_saliency_and_strong_masks_beside_turned_images_are_refused(images, tmp_path, monkeypatch):
    (tmp_path / "maps").mkdir()
    config = with_maps(tmp_path, images)
    monkeypatch.setattr(type(images), "turned", lambda self: ["photo_2"])
    with pytest.raises(InputError, match="saliency maps of 1 images that EXIF says are .*photo_2"):
        make_seeds(config, images, Ramp(), tmp_path / "seeds", {})
    with pytest.raises(InputError, match="masks of 1 images"):
        make_seeds(replace(LOW_CAM, strong_ratio=0.5), images, Ramp(), tmp_path / "seeds", {},
                   strong_masks=tmp_path / "maps")
