"""The committed rows load, claim what the paper says, and differ from their base as they say."""
from __future__ import annotations

from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.backbones import TINY
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.models.snapshot import build_network
from cian.tools.engine.reproduction.experiments import find_experiments, load_experiment
from cian.tools.engine.training.run import training_loss
from cian.tools.engine.training.step import Trainer

ROOT = Path(__file__).resolve().parents[3] / "experiments"
FILES = sorted(ROOT.glob("*/table*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed_row_loads_and_names_its_table(path):
    row = load_experiment(path)
    assert f"table{row.claim.table}" == path.parent.name
    assert row.config.network.affinity == ("self" if "baseline" in path.stem else "cross")
    assert row.config.loss.completion == ("baseline" not in path.stem and not path.stem.startswith("ce"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed_row_builds_at_a_tiny_size_and_takes_a_finite_step(path):
    config, classes, side = load_experiment(path).config, 6, 33
    images = 2 * config.network.group_size
    assert config.train.batch_size % (config.network.group_size * len(config.run.devices)) == 0
    net = build_network(config.network, classes, TINY[config.network.model.replace("_largefov", "")])
    initialize(net, config.train.seed)
    configure_training(net, lr_mult_new=config.train.lr_mult_new, decay_beta=config.train.decay_beta,
                       freeze=config.train.freeze)
    trainer = Trainer(net, training_loss(config, classes), [mx.cpu()], config.train)
    rng = np.random.RandomState(0)
    pixels, seeds = rng.randint(0, 256, (images, 3, side, side)), rng.choice([0, 1, 5, 255], (images, 5, 5))
    before = net.head.weight.data().asnumpy()
    values = trainer.step(
        [mx.io.DataBatch([mx.nd.array(pixels)], [mx.nd.array(seeds), mx.nd.ones((images, classes))])],
        config.train.lr, 0)
    assert np.isfinite(list(values.values())).all() and values["seed_self"] > 0
    assert (values["seed_cross"] > 0) == (config.network.affinity == "cross") and (
        values["completion_self"] > 0) == config.loss.completion
    assert trainer.parameters_finite() and (net.head.weight.data().asnumpy() != before).any()


def test_paper_figures_of_table_2_are_the_papers():
    rows = {row.path.stem: row.claim.paper["val_crf"] for row in find_experiments(ROOT, "voc", 2)}
    assert rows == {"baseline": 58.3, "ce": 59.1, "cp": 62.5, "rt": 64.3}


def test_table_4_has_all_24_figures():
    rows = find_experiments(ROOT, "voc", 4)
    assert sum(len(row.claim.paper) for row in rows) == 24
    assert {row.config.seeds.strong_ratio for row in rows} == {0.0, 0.05, 0.1}


def test_rows_with_one_configuration_share_their_hash():
    first = load_experiment(ROOT / "voc/table2/cp.yaml")
    second = load_experiment(ROOT / "voc/table3/cp-common.yaml")
    other = load_experiment(ROOT / "voc/table3/cp-random.yaml")
    assert first.config.hash() == second.config.hash() != other.config.hash()


@pytest.mark.parametrize("claim, message", [
    ("", "claim: is missing"),
    ("claim: {table: 2, row: x}", "claim.difference: is missing"),
    ("claim: {table: 2, row: x, difference: y, rouns: 2}", "unknown key 'rouns'"),
    ("claim: {table: 2, row: x, difference: y, rounds: 3}", "claim.rounds: 3 is not 1 or 2"),
    ("claim: {table: 2, row: x, difference: y, paper: {vla: 3}}", "'vla' is not one of the figures"),
])
def test_malformed_claim_is_refused_by_name(tmp_path, claim, message):
    path = tmp_path / "row.yaml"
    path.write_text(f"preset: original\n{claim}\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_experiment(path)


def test_unknown_table_names_those_that_exist():
    with pytest.raises(InputError, match="no rows for table 7 on voc.*voc 2"):
        find_experiments(ROOT, "voc", 7)


@pytest.mark.parametrize("text, problem", [
    ("# empty", "claim: is missing"), ("claim: {2001-01-01: 1, table: 2}", "claim: unknown key"),
    ("claim: {table: 2, row: x, difference: y, paper: [1]}", "claim.paper: needs a value of type dict"),
    ("claim: {table: 2, row: x, difference: y, mirrors: 3}", "claim.mirrors: needs a value of type str"),
    ("1: {}", "unknown section")])
def test_a_damaged_row_is_refused_by_name(tmp_path, text, problem):
    (tmp_path / "row.yaml").write_text(text)
    with pytest.raises(InputError, match=f"row.yaml: {problem}"):
        load_experiment(tmp_path / "row.yaml")
