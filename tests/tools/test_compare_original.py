"""The comparison with the original code: its measures, its verdicts, its explanations, and its
command line, without the original.
"""
import json
import math
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cian.errors import InputError
from cian.tools import compare_original
from cian.tools.engine.fidelity import ours as our_side
from cian.tools.engine.fidelity import suite, table, train_checks
from cian.tools.engine.fidelity.process import NEEDED, Answer, Original
from cian.tools.engine.fidelity.table import GRADIENTS, Row

CASE = our_side.TrainCase("resnet18_largefov", 5, 41, 4, 2, "max", 1, seed=3)


# -- measures --------------------------------------------------------------------------------------


def test_errors_by_hand():
    original, ours = np.array([3.0, 4.0, 0.0], np.float32), np.array([3.0, 4.5, 0.0], np.float32)
    assert table.rms_error(ours, original) == pytest.approx(0.5 / math.sqrt(25 / 3))
    assert table.l2_error(ours, original) == pytest.approx(0.1)
    assert table.differing(ours, original) == 1
    assert table.differing({"a": 1, "b": 2}, {"a": 1, "c": 2}) == 2


@pytest.mark.parametrize("measure", [table.rms_error, table.l2_error])
def test_what_cannot_be_measured_is_infinitely_wrong(measure):
    ones = np.ones(4, np.float32)
    assert measure(ones, np.zeros(4, np.float32)) == math.inf and measure(ones,
                                                                          np.ones(3, np.float32)) == math.inf
    assert measure(np.full(4, np.nan, np.float32),
                   ones) == math.inf and measure(ones, np.full(4, np.nan, np.float32)) == math.inf
    assert measure(np.zeros(4, np.float32), np.zeros(4, np.float32)) == 0


def test_the_worst_parameter_is_named_and_a_lonely_one_fails():
    original = {"good": np.ones(3), "bad": np.ones(3)}
    error, note = table.worst({"good": np.ones(3), "bad": np.full(3, 1.5)}, original)
    assert error == pytest.approx(0.5) and note == "2 parameters, worst bad"
    assert table.worst({"good": np.ones(3)}, original) == (math.inf, "only one side has bad")
    assert table.worst({}, {})[0] == math.inf


def test_a_row_passes_at_its_tolerance_and_nothing_else_does():
    assert Row("case", "quantity", 1e-3, 1e-3).verdict == "pass"
    assert [Row("case", "quantity", error, 1e-3).verdict
            for error in (1.1e-3, math.inf, math.nan)] == ["FAIL"] * 3
    assert Row("case", "quantity", 1.0, 0.0).verdict == "FAIL"
    assert Row("case", "quantity", 1.0, 0.0, compared=False).verdict == "not compared"
    assert table.format_row(Row("case", "quantity", 3.0, table.IDENTICAL, "why")).split() == [
        "case", "quantity", "3", "identical", "FAIL", "(why)"]


def test_the_summary_has_the_largest_error_of_each_quantity():
    rows = [Row("a", "gradients", 1e-5, 1e-3), Row("b", "gradients", 9e-4, 1e-3),
            Row("c", "gradients", 4e-3, 6e-3), Row("d", "gradients", math.inf, 1e-3, compared=False),
            Row("a", "order", 0, 0), Row("b", "order", 2, 0)]
    first, second = table.summarise(rows)
    assert (first.case, first.error, first.verdict, first.note) == ("3 cases", 9e-4, "pass",
                                                                    "1 loosened, up to 4.0e-03")
    assert (second.case, second.error, second.verdict) == ("2 cases", 2, "FAIL")


# -- verdicts on our own numbers, put in the original's place --------------------------------------


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Our side of a small case: (file of weights, inputs, arrays, facts)."""
    weights = str(tmp_path_factory.mktemp("weights") / "start.params")
    inputs = our_side.make_inputs(CASE, weights)
    return (weights, inputs, *our_side.steps_of_ours(CASE, weights, inputs))


def test_our_side_has_every_quantity(numbers):
    _, inputs, arrays, facts = numbers
    trained = set(our_side.prefixed(arrays, "gradient"))
    assert {"conv0_weight", "fc1_weight", "bn_out_gamma", "conv_embed_q_weight"} <= trained
    for prefix in ("param1", "param3", "momentum1", "momentum3", "start"):
        assert set(our_side.prefixed(arrays, prefix)) == trained
    assert set(our_side.prefixed(arrays, "statistics3")) == {"bn_out_moving_mean", "bn_out_moving_var"}
    assert facts["lr"]["fc1_weight"] == pytest.approx(
        10 * facts["lr"]["conv0_weight"]) and facts["wd"]["bn_out_beta"] == 0
    assert "bn0_gamma" in facts["frozen"] and not facts["frozen_moved"] and facts["rescale"] == 1 / 4
    assert np.isin(inputs["label0"], [*range(5), 255]).all()


def test_well_conditioned_means_that_rounding_stays_rounding(numbers):
    weights, inputs, arrays, _ = numbers
    noise = 1 + 1e-7 * np.random.RandomState(0).standard_normal(inputs["data0"].shape)
    moved, _ = our_side.steps_of_ours(CASE, weights,
                                      {**inputs, "data0": (inputs["data0"] * noise).astype(np.float32)})
    error, note = table.worst(our_side.prefixed(moved, "gradient"), our_side.prefixed(arrays, "gradient"))
    assert error < GRADIENTS, note


def test_equal_numbers_pass_and_each_changed_one_fails_by_its_name(numbers):
    arrays = numbers[2]
    assert {row.verdict for row in train_checks.compare_steps("case", arrays, arrays)} == {"pass"}
    for key, quantity in (("gradient/conv0_weight", "gradients"),
                          ("param1/fc1_weight", "updates after 1 step"),
                          ("momentum3/conv_out_weight", "momentum after 3 steps"),
                          ("statistics3/bn_out_moving_var", "statistics after 3 steps")):
        changed = {**arrays, key: arrays[key] + 0.01 * np.abs(arrays[key]).max()}
        rows = {row.quantity: row for row in train_checks.compare_steps("case", changed, arrays)}
        assert [name for name, row in rows.items() if row.verdict == "FAIL"] == [quantity]
        assert rows[quantity].note.endswith(key.split("/")[1])
    logits = {**arrays, "logits/cross": arrays["logits/cross"] * 1.001}
    assert [row.verdict for row in train_checks.compare_logits("case", logits, arrays)] == ["pass", "FAIL"]


def test_a_flipped_completion_target_is_said_and_not_compared_from_that_step_on(numbers):
    arrays = numbers[2]
    flipped = {**arrays, "probability1": arrays["probability1"].copy(),
               "param3/fc1_weight": 2 * arrays["param3/fc1_weight"]}
    pixel = flipped["probability1"][0, :, 0, 0]
    first, second = np.argsort(pixel)[:-3:-1]
    near = {**arrays, "probability1": flipped["probability1"].copy()}
    near["probability1"][0, [first, second], 0, 0] = pixel[first], pixel[first] - 1e-5
    flipped["probability1"][0, [first, second], 0, 0] = pixel[first], pixel[first] + 1e-5
    rows = {row.quantity: row for row in train_checks.compare_steps("case", flipped, near)}
    assert rows["gradients"].verdict == rows["updates after 1 step"].verdict == "pass"
    assert rows["probabilities of the cross branch"].verdict == "pass"
    assert rows["updates after 3 steps"].verdict == "not compared"
    assert rows["updates after 3 steps"].note == "1 pixels of the completion target flipped"


def test_a_flip_that_was_no_near_tie_is_a_failure(numbers):
    arrays = numbers[2]
    flipped = {**arrays, "probability1": np.roll(arrays["probability1"], 1, axis=1)}
    verdicts = {row.quantity: row.verdict for row in train_checks.compare_steps("case", flipped, arrays)}
    assert verdicts["probabilities of the cross branch"] == "FAIL" and verdicts[
        "updates after 3 steps"] == "not compared"


def test_a_miss_is_excused_only_by_our_own_response_to_rounding_and_never_in_the_first_step(numbers,
                                                                                            monkeypatch):
    weights, inputs, arrays, _ = numbers
    rows = [Row("case", "updates after 3 steps", 5e-3, GRADIENTS, "worst a"),
            Row("case", "gradients", 5e-3, GRADIENTS)]
    for response, verdict in ((2e-3, "pass"), (1e-4, "FAIL")):  # three times that
        moved = {**arrays, **{f"param3/{name}": start + (1 + response) * (arrays[f"param3/{name}"] - start)
                              for name, start in our_side.prefixed(arrays, "start").items()}}
        monkeypatch.setattr(train_checks, "steps_of_ours", lambda *_, moved=moved: (moved, {}))
        explained = train_checks.explain(rows, CASE, weights, inputs, arrays)
        assert [row.verdict for row in explained] == [verdict, "FAIL"]
    assert explained[0].tolerance == GRADIENTS and "change our own by 1.0e-04" in explained[0].note
    monkeypatch.setattr(train_checks, "steps_of_ours", None)  # not called without a miss
    assert train_checks.explain([Row("case", "updates after 3 steps", 0, GRADIENTS)], CASE, weights, inputs,
                                arrays)[0].verdict == "pass"


def test_nothing_excuses_a_large_error():
    row = Row("case", "updates after 2 epochs", 0.5, GRADIENTS, "worst a")
    assert table.loosened(row, 10.0, "weights").verdict == "FAIL"
    assert table.loosened(replace(row, error=0.02), 10.0, "weights").verdict == "pass"
    assert table.loosened(replace(row, error=1e-4), 10.0, "weights") == replace(row, error=1e-4)


def test_names_that_the_original_does_not_find_are_a_failure():
    log = ["Using pretrained params", "[91m[01-02]Find missing arg_params: fc1_weight: target (5, 9)[0m"]
    row = train_checks.compare_names("case", Answer({}, {}, log))[0]
    assert row.verdict == "FAIL" and "fc1_weight" in row.note


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A folder with the names of the original's files."""
    for name in NEEDED:
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    return tmp_path / "original"


def test_wrong_input_is_one_line_that_names_it(checkout, tmp_path, monkeypatch):
    monkeypatch.delenv("CIAN_ORIGINAL", raising=False)
    with pytest.raises(InputError, match="--original: no checkout"):
        compare_original.main([])
    (checkout / NEEDED[2]).unlink()
    with pytest.raises(InputError, match=f"it lacks {NEEDED[2]}"):
        compare_original.main(["--original", str(checkout)])
    with pytest.raises(InputError, match="--work: exists already"):
        compare_original.main(["--original", str(checkout), "--work", str(tmp_path)])


def test_an_original_that_fails_is_quoted(checkout, tmp_path):
    (checkout / "lib" / "models" / "__init__.py").write_text("raise RuntimeError('no such layer')",
                                                             encoding="utf-8")
    (checkout / "lib" / "__init__.py").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="failed at the job 'losses': RuntimeError: no such layer"):
        Original(checkout, tmp_path).run("losses", {"kind": "losses"}, {"self/a": np.ones(1)})


def first_rows(error):
    return [Row("first", "quantity", 0.0, 1e-3), Row("first", "other", error, 1e-3)]


def second_rows():
    return [Row("second", "quantity", math.inf, 1e-3, "why", compared=False)]


@pytest.fixture
def two_checks(monkeypatch, tmp_path):
    """``two_checks(error)`` puts two comparisons in the suite's place; returns the options that the
    suite got and the folders.
    """
    got = {}

    def put(error):
        def checks(original, **settings):
            got.update(settings)
            for name, rows in (("first", partial(first_rows, error)), ("second", second_rows)):
                got[name] = original.below(name).work
                yield suite.Check(name, rows, got[name])
        monkeypatch.setattr(suite, "checks", checks)
        return got
    return put


@pytest.mark.parametrize("error, code", [(0.0, 0), (1.0, 1)])
def test_the_tool_prints_every_line_writes_json_and_fails_by_its_exit_code(checkout, tmp_path, two_checks,
                                                                           capsys, error, code):
    got = two_checks(error)
    path, table_path = tmp_path / "rows.json", tmp_path / "table.md"
    arguments = ["--original", str(checkout), "--quick", "--seed", "5"]
    assert compare_original.main([*arguments, "--json", str(path), "--markdown", str(table_path)]) == code
    assert got["quick"] and got["seed"] == 5
    printed = capsys.readouterr().out
    assert f"{2 - code} pass, {code} FAIL, 1 not compared" in printed and "mxnet 1.9.1" in printed
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["check"], row["verdict"]) for row in content["rows"]] == [
        ("first", "pass"), ("first", "FAIL" if code else "pass"), ("second", "not compared")]
    assert content["versions"]["numpy"] == np.__version__
    written = table_path.read_text(encoding="utf-8")
    assert f"| other | 1 | {'1.0e+00' if code else '0'} | 1e-03 | {'FAIL' if code else 'pass'} |" in written
    assert written.endswith("* second, quantity: inf, not compared; why\n")
    assert compare_original.main([*arguments, "--only", "second"]) == 0
    with pytest.raises(InputError, match="no comparison is called third"):
        compare_original.main([*arguments, "--only", "third"])


def test_files_of_a_comparison_go_with_it_unless_they_are_to_be_kept(checkout, tmp_path, two_checks):
    got = two_checks(0.0)
    assert compare_original.main(["--original", str(checkout)]) == 0 and not os.path.exists(got["first"])
    assert compare_original.main(["--original", str(checkout), "--work", str(tmp_path / "kept")]) == 0
    assert os.path.isdir(got["first"]) and got["first"].startswith(str(tmp_path / "kept"))


def test_several_at_a_time_give_the_same_rows_in_the_same_order(checkout, tmp_path, two_checks):
    two_checks(0.0)
    contents = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.json"
        assert compare_original.main(["--original", str(checkout), "--jobs", jobs, "--json", str(path)]) == 0
        contents.append(json.loads(path.read_text(encoding="utf-8"))["rows"])
    assert contents[0] == contents[1]


def test_a_resumed_comparison_makes_what_is_missing_and_refuses_a_file_of_other_settings(
        checkout, tmp_path, two_checks, monkeypatch):
    two_checks(0.0)
    path = tmp_path / "rows.json"
    arguments = ["--original", str(checkout), "--json", str(path), "--resume"]
    assert compare_original.main(arguments) == 0
    whole = path.read_text(encoding="utf-8")
    content = json.loads(whole)
    content["rows"], content["seconds"] = content["rows"][:2], {"first": 7.0}
    path.write_text(json.dumps(content), encoding="utf-8")
    two_checks(1.0)  # would fail if the first one were made again
    assert compare_original.main(arguments) == 0
    resumed = json.loads(path.read_text(encoding="utf-8"))
    assert resumed["rows"] == json.loads(whole)["rows"] and resumed["seconds"]["first"] == 7.0
    with pytest.raises(InputError, match="rows.json: --resume: belongs to other settings"):
        compare_original.main([*arguments, "--seed", "1"])
    with pytest.raises(InputError, match="--resume: needs the file"):
        compare_original.main(["--original", str(checkout), "--resume"])
    path.write_text(whole[:50], encoding="utf-8")
    with pytest.raises(InputError, match="is no file of a comparison"):
        compare_original.main(arguments)
