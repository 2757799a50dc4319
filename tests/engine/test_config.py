import dataclasses
import re

import pytest
import yaml

from cian.errors import InputError
from cian.tools.engine.config import PRESETS, SECTIONS, Config, check_recorded, load_config, save_config

# What the released code uses, read off its command line and its sources.
ORIGINAL = {"network.group_size": 2, "network.merge_type": "max", "network.merge_self": True,
            "loss.completion_labels": "seed", "loss.completion_target": "cross", "loss.normalise": "device",
            "train.epochs": 20, "train.batch_size": 16, "train.crop_px": 321, "train.lr": 5e-4,
            "train.lr_mult_new": 10.0, "train.momentum": 0.9, "train.weight_decay": 5e-4,
            "train.decay_beta": False, "train.lr_power": 0.9, "train.lr_decay": "epoch",
            "train.pairing": "common", "train.scales": (0.5, 0.75, 1.0, 1.25, 1.5),
            "train.label_padding": "background", "train.label_resize": "bilinear", "train.keep": 5,
            "predict.size_px": 513, "predict.scales": (1.0, 0.75, 1.25), "predict.fit": "pad"}


def get(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", ORIGINAL)
def test_a_default_is_what_the_original_code_does(key):
    assert get(load_config(), key) == ORIGINAL[key]


def test_the_preset_original_is_the_default_and_paper_changes_exactly_the_quirks():
    assert load_config(preset="original") == Config()
    paper, changed = load_config(preset="paper"), {}
    for section in SECTIONS:
        for key in dataclasses.fields(SECTIONS[section]):
            if getattr(getattr(paper, section), key.name) != getattr(getattr(Config(), section), key.name):
                changed.setdefault(section, {})[key.name] = getattr(getattr(paper, section), key.name)
    assert changed == PRESETS["paper"]


def test_every_key_of_a_preset_is_valid():
    for name in PRESETS:
        assert load_config(preset=name).preset == name


def test_layers_win_in_order_preset_file_later_file_flag_override(tmp_path):
    first = write(
        tmp_path / "a.yaml",
        "preset: paper\ntrain: {lr: 0.1, epochs: 7, batch_size: 6, crop_px: 33, label_resize: bilinear}\n")
    second = write(tmp_path / "b.yaml", "train: {epochs: 11, batch_size: 8, crop_px: 35}\n")
    config = load_config([first, second], ["train.crop_px=41"],
                         flags={"train": {"batch_size": 10, "crop_px": 37}})
    assert (config.train.lr, config.train.epochs, config.train.batch_size, config.train.crop_px) == (0.1, 11,
                                                                                                     10, 41)
    assert config.train.label_resize == "bilinear" and config.train.label_padding == "ignore"


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.yaml", "train: {epochs: 3}\nnetwork: {group_size: 5}\n")
    top = write(tmp_path / "deep" / "top.yaml",
                "base: ../base.yaml\nclaim: {anything: goes}\ntrain: {epochs: 13}\n")
    config = load_config([top])
    assert (config.train.epochs, config.network.group_size) == (13, 5)


def test_a_preset_on_the_command_line_wins_over_the_files(tmp_path):
    path = write(tmp_path / "a.yaml", "preset: paper\n")
    assert load_config([path], preset="original").loss.normalise == "device"
    assert load_config([path], ["preset=original"]).loss.normalise == "device"


@pytest.mark.parametrize("text, expected",
                         [("train.lr=5e-4", 5e-4), ("train.lr=1", 1.0), ("train.mirror=false", False),
                          ("train.scales=[1, 0.5]", (1.0, 0.5)), ("train.scales=0.5", (0.5,)),
                          ("run.devices=cpu:0,cpu:1", ("cpu:0", "cpu:1")),
                          ("run.devices=[gpu:0]", ("gpu:0",)), ("data.train_list=2007", "2007"),
                          ("network.pretrained=", ""), ("train.freeze=stage1,conv0", ("stage1", "conv0")),
                          ("train.freeze=''", ()), ("train.freeze=['a,b', c]", ("a,b", "c"))])
def test_an_override_is_read_as_its_keys_type(text, expected):
    value = get(load_config(overrides=[text]), text.partition("=")[0])
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text, message", [
    ("train.epochs=three", r"train\.epochs: needs a value of type int"),
    ("train.epochs=2.5", r"train\.epochs: needs a value of type int"),
    ("train.epochs=true", r"train\.epochs: needs a value of type int"),
    ("train.epochs=0", r"train\.epochs: 0 is below 1"),
    ("train.mirror=1", r"train\.mirror: needs a value of type bool"),
    ("train.lr=.nan", r"train\.lr: needs a value of type float"),
    ("train.lr=-1", r"train\.lr: -1\.0 is below 0"),
    ("train.scales=[1, big]", r"train\.scales: needs a value of type float, not 'big'"),
    ("train.epoch=3", r"unknown key 'epoch'; did you mean 'epochs'\?"),
    ("trian.epochs=3", r"unknown section 'trian'; did you mean 'train'\?"),
    ("network.merge_type=mean", r"'mean' is not allowed; use one of: max, avg"),
    ("train.epochs", r"not of the form section\.key=value"),
    ("epochs=3", r"not of the form section\.key=value"),
    ("train.lr=[", r"train\.lr: needs a value of type float, not '\['"),
    ("preset=best", r"preset: unknown preset 'best'; use one of: original, paper"),
])
def test_a_wrong_override_is_refused_by_name(text, message):
    with pytest.raises(InputError, match=message) as refused:
        load_config(overrides=[text])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, message",
    [("train: [1, 2]\n", "must hold keys"), ("- 1\n", "must hold sections"),
     ("train: {epochs: 3\n", "not valid YAML"), ("base: missing.yaml\n", "missing.yaml: does not exist"),
     ("base: a.yaml\n", "circle"), ("train: {lr: fast}\n", "train.lr"), ("preset: best\n", "unknown preset")])
def test_a_wrong_file_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config([write(tmp_path / "a.yaml", content)])


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nowhere.yaml: does not exist"):
        load_config([tmp_path / "nowhere.yaml"])


def test_a_saved_configuration_reads_back_equal_with_its_hash_on_top(tmp_path):
    config = load_config(overrides=["train.lr=3e-5", "train.freeze=stage1", "data.root=/some/where",
                                    "predict.scales=[1]"], preset="paper")
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# hash: {config.hash()}\n")
    assert load_config([tmp_path / "config.yaml"]) == config
    assert yaml.safe_load(text)["train"]["freeze"] == ["stage1"]
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_the_hash_changes_with_what_is_computed_and_not_with_where_or_how_fast():
    base = load_config()
    for override in ("train.seed=1", "network.affinity=self", "loss.completion=false",
                     "run.devices=cpu:0,cpu:1", "train.scales=[1]"):
        assert load_config(overrides=[override]).hash() != base.hash(), override
    for override in ("data.root=/else", "run.workers=3", "run.snapshot=/there", "train.keep=2",
                     "train.save_every=7", "train.log_every=1"):
        assert load_config(overrides=[override]).hash() == base.hash(), override
    assert re.fullmatch(r"[0-9a-f]{12}", base.hash())


def test_the_hash_of_some_sections_ignores_the_others():
    changed = load_config(overrides=["predict.crf=none"])
    assert changed.hash() != Config().hash()
    assert changed.hash(("network", "train")) == Config().hash(("network", "train"))


def test_replace_checks_as_a_file_does():
    assert Config().replace(train={"epochs": 3}).train.epochs == 3
    with pytest.raises(InputError, match="unknown key"):
        Config().replace(train={"epoch": 3})


def test_every_key_has_one_line_of_help():
    for section, kind in SECTIONS.items():
        for key in dataclasses.fields(kind):
            text = key.metadata["help"]
            assert text and "\n" not in text, f"{section}.{key.name}"


@pytest.mark.parametrize("text", ["2024_05_01", "010", "0x10", "12:30", "1.50", "exp #2", "2024-05-01",
                                  "off", "1e5",
                                  "yes", "=", "a: b", "{x}", "<<", " x", "!!int 3", "*", "&a", "-", "0o7",
                                  "٣"])
def test_text_stays_what_was_written(tmp_path, text):
    assert load_config(overrides=[f"run.snapshot={text}"]).run.snapshot == text
    assert load_config(flags={"run": {"snapshot": text}}).run.snapshot == text
    quoted = write(tmp_path / "quoted.yaml", f"run: {{snapshot: '{text}'}}\n")
    assert load_config([quoted]).run.snapshot == text
    save_config(load_config([quoted]), tmp_path / "saved.yaml")
    assert load_config([tmp_path / "saved.yaml"]).run.snapshot == text


@pytest.mark.parametrize("text", ["2008_09", "010", "12:30", "2024-05-01", "off", "1.50", "1e5"])
def test_plain_text_of_a_file_stays_what_was_written(tmp_path, text):
    path = write(tmp_path / "a.yaml", f"data:\n  val_list: {text}  # a comment\n  root: ''\n")
    assert (load_config([path]).data.val_list, load_config([path]).data.root) == (text, "")


@pytest.mark.parametrize("text", ["null", "~", "~/runs"])
def test_what_a_program_would_have_to_guess_is_refused(tmp_path, text):
    for given in ({"overrides": [f"run.snapshot={text}"]}, {"files": [write(tmp_path / "a.yaml",
                                                                            f"run: {{snapshot: {text}}}")]}):
        with pytest.raises(InputError, match=rf"run\.snapshot: '{text}' "):
            load_config(**given)
    assert load_config(overrides=[f"run.snapshot='{text}'"]).run.snapshot == text


@pytest.mark.parametrize(("text", "value"), [("train.epochs=1_000", 1000), ("train.epochs=+5", 5),
                                             ("train.lr=.5", 0.5),
                                             ("train.lr=1E-3", 1e-3), ("train.mirror=off", False),
                                             ("train.mirror=Yes", True)])
def test_numbers_and_truth_values_are_read_as_they_are_written(text, value):
    assert get(load_config(overrides=[text]), text.partition("=")[0]) == value


@pytest.mark.parametrize("text", [
    "train.epochs=010", "train.epochs=0x10", "train.epochs=1:30", "train.epochs=1e3", "train.epochs=10000000",
    "train.lr=inf", "train.lr=.inf", "train.lr=1e999", "train.lr=1e-999", "train.lr=0x1p-3", "train.lr=1000",
                                  "train.lr=null",
    "train.mirror=maybe", "train.seed=4294967296", "train.scales=[1, inf]", "train.scales=0",
                                  "train.momentum=9",
    "seeds.foreground_threshold=30", "run.workers=100000", "train.freeze=conv0_,", "train.scales=1,,2",
                                  "run.devices=[cpu:0", "run.snapshot=a\0b"])
def test_a_value_that_cannot_be_meant_is_refused(text):
    with pytest.raises(InputError, match=text.partition("=")[0].replace(".", r"\.")):
        load_config(overrides=[text])


@pytest.mark.parametrize("content", ["train: {lr: 1, lr: 2}\n", "train: {lr: 1}\ntrain: {epochs: 2}\n",
                                     "preset: paper\npreset: original\n"])
def test_a_key_that_occurs_twice_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="occurs twice"):
        load_config([write(tmp_path / "a.yaml", content)])


def test_no_section_that_is_not_one_is_dropped_from_the_command_line():
    for text in ("base.x=1", "claim.table=2"):
        with pytest.raises(InputError, match="unknown section"):
            load_config(overrides=[text])


@pytest.mark.parametrize("content", ["[]\n", "0\n", "false\n", "base: [a, b]\n", "base: ''\n",
                                     "preset: [a]\n", "train:\n",
                                     "? [a, b]\n: c\n"])
def test_a_file_that_says_something_else_is_not_taken_for_an_empty_one(tmp_path, content):
    with pytest.raises(InputError, match="a.yaml|preset"):
        load_config([write(tmp_path / "a.yaml", content)])


def test_keys_may_still_be_merged_from_an_anchor(tmp_path):
    path = write(tmp_path / "a.yaml", "train: &t {epochs: 3}\ncam: {<<: *t, seed: 2}\n")
    assert (load_config([path]).cam.epochs, load_config([path]).cam.seed) == (3, 2)


@pytest.mark.parametrize("text, other", [("lr: 0.0005", "lr: 0.0006"), ("# hash: ", "# hush: ")])
def test_recorded_settings_that_were_changed_are_refused_and_paths_may_change(tmp_path, text, other):
    path = tmp_path / "config.yaml"
    save_config(load_config(overrides=["data.root=there"]), path)
    recorded = path.read_text(encoding="utf-8")
    write(path, recorded.replace("root: there", "root: moved"))
    assert check_recorded(path).data.root == "moved"
    write(path, recorded.replace(text, other))
    with pytest.raises(InputError, match="config.yaml: hash: holds other settings than were recorded"):
        check_recorded(path)
