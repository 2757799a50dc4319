"""The record sets that stages read, and what a run goes on with."""
import pytest

from cian.errors import InputError
from cian.tools.engine.config import load_config
from cian.tools.engine.training.sources import (
    open_images,
    open_training_records,
    refuse_other_sources,
    run_sources,
)


@pytest.fixture
def config(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=6)
    return load_config(overrides=[f"data.root={root}", f"data.classes={root}/classes.txt",
                                  "data.train_list=train",
                                  f"data.label_root={root}/seeds", f"run.snapshot={tmp_path}/run"])


def test_a_class_list_beside_records_is_compared_with_them(config, tmp_path):
    open_training_records(config)
    packed = config.replace(data={"records": f"{tmp_path}/run/records"})
    assert len(open_images(packed, "train")) == 6
    assert len(open_images(packed.replace(data={"classes": "voc"}), "train")) == 6  # none was named
    (tmp_path / "other.txt").write_text("background\ncat\ndog\n")
    for wrong in (open_training_records, lambda given: open_images(given, "train")):
        with pytest.raises(InputError, match="train.json: classes: has other classes than .*other.txt"):
            wrong(packed.replace(data={"classes": f"{tmp_path}/other.txt"}))


def test_a_run_goes_on_with_the_content_that_it_began_with(config, tmp_path):
    weights = tmp_path / "start.params"
    weights.write_bytes(b"one")
    images, seeds = open_training_records(config)
    sources = run_sources(config, weights, images, seeds)
    refuse_other_sources({"sources": sources}, sources, "run")
    refuse_other_sources(None, sources, "run")
    weights.write_bytes(b"two")
    with pytest.raises(InputError, match="belongs to a run whose first weights had another content"):
        refuse_other_sources({"sources": sources}, run_sources(config, weights, images, seeds), "run")
    with pytest.raises(InputError, match="whose images and seeds had another content"):
        refuse_other_sources({"sources": {**sources, "images": "x", "seeds": "y"}}, sources, "run")
