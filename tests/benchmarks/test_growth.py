"""Points of a series, and the picture of several."""
import cv2
import growth


def test_a_point_is_a_process_with_its_own_time_and_memory(tmp_path):
    point = growth.step_point("resnet18_largefov", {"crop": 33, "batch_size": 2}, 1, str(tmp_path / "point"))
    assert 0 < point["seconds"] < 30
    assert 150 < point["peak_mb"] < 3000


def test_batches_hold_whole_groups():
    for name, series in growth.SERIES.items():
        for value in series["values"]:
            settings = {**growth.BASE, **series["fixed"], name: value}
            assert settings["batch_size"] % settings["group_size"] == 0


def test_the_picture_has_a_panel_for_each_series(tmp_path):
    points = [{"crop": 97, "seconds": 1.0, "peak_mb": 800.0}, {"crop": 129, "seconds": 2.0, "peak_mb": 900.0}]
    growth.plot({"crop": points}, str(tmp_path / "one.png"))
    growth.plot({"crop": points, "scored": [{"scored": 5, "seconds": 1.0, "peak_mb": 50.0}]},
                str(tmp_path / "two.png"))
    one, two = (cv2.imread(str(tmp_path / f"{name}.png")).shape[1] for name in ("one", "two"))
    assert two > 1.8 * one
