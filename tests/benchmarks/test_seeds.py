"""Both ways of making seeds are timed on the same images."""
import seeds


def test_both_ways_make_all_seeds_and_take_longer_than_the_network(tmp_path):
    found = seeds.measure("resnet18", 3, (48, 40), 1, str(tmp_path))
    for way in ("overlapped_0", "one after the other_0"):
        assert len(list((tmp_path / way).glob("*.png"))) == 3
    assert 0 < found["median_s"]["network alone"]["median"] < found["median_s"]["one after the other"][
        "median"]
    made = [(tmp_path / way / "picture_0001.png").read_bytes()
            for way in ("overlapped_0", "one after the other_0")]
    assert made[0] == made[1]
