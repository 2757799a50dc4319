"""The comparison's files, its turns and its figures, at a tiny size."""
import json
import os

import cv2
import numpy as np
import pytest
from compare import Comparison, earlier, equal_pixels, main, parser, settings_from, summarise
from compare_files import QUICK, Files, Settings
from compare_report import DEFAULT, EQUAL, OURS, plot, report
from PIL import Image

from cian.data.lists import read_list
from cian.errors import InputError
from cian.tools.engine.fidelity.process import NEEDED, Original

TINY = Settings(model="resnet50_largefov", width_px=40, height_px=32, crop_px=33, batch_size=2, size_px=41,
                steps=2, chain_images=2, predicted=2, refined=3, load_batches=1, load_batch_size=2, scored=7)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(str(tmp_path_factory.mktemp("compare") / "files"), TINY)


@pytest.fixture
def fake_original(tmp_path):
    """A folder that looks like a checkout; its evaluation looks at how it was called."""
    for name in NEEDED:
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "original" / "scripts" / "eval_segment.py").write_text(
        "import os, sys, time\nassert '--groundtruth-root' in sys.argv and 'OMP_NUM_THREADS' not in "
        "os.environ\ntime.sleep(0.3)\n")
    return Original(tmp_path / "original", tmp_path)


def test_generated_images_have_the_size_asked_for_and_a_common_class(files):
    names = read_list(files.lists["all"])
    assert cv2.imread(os.path.join(files.folder("JPEGImages"), f"{names[0]}.jpg")).shape == (32, 40, 3)
    for name in names:
        with open(os.path.join(files.folder("Annotations"), f"{name}.xml"), encoding="utf-8") as stream:
            assert "<name>person</name>" in stream.read()
    assert [len(read_list(files.lists[key]))
            for key in ("train", "val", "predicted", "refined", "scored")] == [4, 2, 2, 3, 7]


def test_predictions_to_score_are_labels_and_differ_from_the_truth(files):
    pairs = [[cv2.imread(os.path.join(files.root, folder, f"{name}.png"), cv2.IMREAD_UNCHANGED)
              for folder in ("truth", "scored")] for name in read_list(files.lists["scored"])]
    assert all(truth.shape == scored.shape for truth, scored in pairs)
    assert any((truth == 255).any() for truth, _ in pairs)
    assert not any((scored == 255).any() for _, scored in pairs)
    assert any((truth != scored)[truth != 255].any() for truth, scored in pairs)


def test_images_that_the_original_would_cut_are_refused(tmp_path):
    with pytest.raises(InputError, match="larger than 33 pixels"):
        Files(str(tmp_path / "files"), Settings(**{**vars(TINY), "size_px": 33}))


def test_both_sides_score_the_same_files_as_command_lines(files, fake_original, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    found = summarise(Comparison(fake_original, files, str(work), 1).run("evaluation"))
    assert set(found["seconds"]) == {DEFAULT, OURS}
    assert found["times_as_fast"][DEFAULT]["median"] == found["seconds"][DEFAULT][0] / found["seconds"][OURS][
        0]
    assert found["seconds"][DEFAULT][0] > 0.3 and found["cpu_seconds"][OURS][0] > 0.01
    assert all(10 < peak < 500 for peak in found["peak_mb"].values())


def test_label_maps_are_compared_pixel_by_pixel_whatever_their_colours(tmp_path):
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    other = labels.copy()
    other[0, :3] = 20
    for folder in ("gray", "palette"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "gray" / "a.png"), labels)
    picture = Image.fromarray(other, "P")
    picture.putpalette([10 * value for value in range(25) for _ in range(3)])
    picture.save(tmp_path / "palette" / "a.png")
    assert equal_pixels(str(tmp_path / "gray"), str(tmp_path / "palette"), ["a"]) == 17 / 20


def a_stage():
    seconds = {DEFAULT: [4.0, 6.0], EQUAL: [2.0, 2.0], OURS: [2.0, 2.0]}
    cpu = {DEFAULT: [3.0, 3.0], EQUAL: [4.0, 4.0], OURS: [2.0, 2.0]}
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": {DEFAULT: 100.0, EQUAL: 110.0, OURS: 90.0},
            "equal_pixels": 1.0, "parts": {"train": seconds},
            "parts_peak_mb": {"train": {DEFAULT: 100.0, EQUAL: 110.0, OURS: 90.0}}}


def test_the_report_and_the_picture_show_stages_and_their_parts(tmp_path):
    found = summarise(a_stage())
    assert found["times_as_fast"][DEFAULT] == {"median": 2.5, "min": 2.0, "max": 3.0}
    lines = report({"chain": found}).splitlines()
    assert lines[2].split() == ["chain", "5.00", "2.00", "2.00", "2.50", "(2.00-3.00)", "1.00", "(1.00-1.00)",
                                "1.50", "(1.50-1.50)", "2.00", "(2.00-2.00)", "100", "90", "100.000", "%"]
    assert lines[3].startswith("chain: train")
    plot({"stages": {"chain": found}, "machine": {"processor": "a processor", "cores": 2}},
         str(tmp_path / "plot.png"))
    assert cv2.imread(str(tmp_path / "plot.png")).size


def test_results_of_other_settings_are_not_kept(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"settings": {"crop_px": 33}, "stages": {"step": {}}}))
    assert earlier(str(path), {"crop_px": 33}) == {"step": {}}
    assert earlier(str(path), {"crop_px": 35}) == {}


def test_flags_change_the_settings():
    settings = settings_from(parser().parse_args(["--quick", "--crop", "65", "--images", "50", "40"]))
    assert (settings.crop_px, settings.width_px, settings.height_px, settings.size_px) == (65, 50, 40,
                                                                                           QUICK.size_px)


def test_a_folder_that_is_no_checkout_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="no checkout of the original code"):
        main(["--original", str(tmp_path), "--quick"])


@pytest.mark.original
@pytest.mark.skipif(not os.environ.get("CIAN_ORIGINAL"), reason="CIAN_ORIGINAL names no checkout")
def test_both_sides_refine_the_same_logits_to_the_same_labels(files, tmp_path):
    files.prepare()
    found = Comparison(Original(os.environ["CIAN_ORIGINAL"], str(tmp_path)), files, str(tmp_path),
                       1).run("crf")
    assert found["equal_pixels"] > 0.999
