"""Packing ends in a whole set or in nothing: full disk, kill, two packers, files that change."""
import multiprocessing
import os
import resource
import signal
import time

import pytest

from cian.data import packing, writer
from cian.data.packing import pack_images
from cian.data.preparation import prepare
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.data.verification import verify
from cian.errors import InputError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def tree(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=12)
    return DatasetTree(root, classes=os.path.join(root, "classes.txt"),
                       label_root=os.path.join(root, "seeds"))


def pack_some(tree, out, count, **options):
    names = tree.names("train")[:count]
    return pack_images(out, "train", names, [tree.image_path(name) for name in names], tree.labels(names),
                       tree.classes, workers=1, **options)


def _pack_within(tree, out, limit, result):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        pack_some(tree, out, 12)
    except InputError as error:
        result.put(str(error))
    else:
        result.put("packed")


@pytest.mark.parametrize("limit", [10, 300, 5000, 100_000])
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(tree, tmp_path, limit, existing):
    out = tmp_path / "records"
    out.mkdir()
    if existing:
        pack_some(tree, out, 5)
    before = sorted(os.listdir(out))
    result = FORK.Queue()
    child = FORK.Process(target=_pack_within, args=(tree, out, limit, result))
    child.start()
    message = result.get(timeout=20)
    child.join()
    if message == "packed":
        assert limit == 100_000 and len(RecordSet.open(out, "train")) == 12
        return
    assert "cannot be written" in message and str(out / "train") in message
    assert sorted(os.listdir(out)) == before
    if existing:
        assert len(RecordSet.open(out, "train")) == 5 and not verify(RecordSet.open(out, "train"))


@pytest.mark.parametrize("call", range(1, 7))
def test_a_failure_at_any_step_of_the_commit_keeps_the_old_set(tree, tmp_path, monkeypatch, call):
    out = tmp_path / "records"
    pack_some(tree, out, 5)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="No space left on device"):
        pack_some(tree, out, 12, num_parts=2)
    monkeypatch.undo()
    assert len(calls) == call
    assert len(RecordSet.open(out, "train")) == 5 and not verify(RecordSet.open(out, "train"))
    pack_some(tree, out, 12)
    assert len(os.listdir(out)) == 4  # what the failed one had renamed is gone


def _pack_slowly(tree, out, started):
    real = writer.RecordWriter.add

    def add(self, *arguments):
        real(self, *arguments)
        started.set()
        time.sleep(60)

    writer.RecordWriter.add = add
    pack_some(tree, out, 12)


def test_a_second_packer_is_refused_and_a_killed_one_leaves_nothing_final(tree, tmp_path):
    out, started = tmp_path / "records", FORK.Event()
    pack_some(tree, out, 5)
    before = sorted(os.listdir(out))
    first = FORK.Process(target=_pack_slowly, args=(tree, out, started))
    first.start()
    assert started.wait(20)
    with pytest.raises(InputError, match=f"the record set train is being written by process {first.pid}"):
        pack_some(tree, out, 12)
    first.kill()
    first.join()
    assert sorted(entry for entry in os.listdir(out) if not entry.startswith(".")) == before
    assert len(RecordSet.open(out, "train")) == 5
    assert len(pack_some(tree, out, 12)) == 12
    assert len(os.listdir(out)) == 4


def test_what_a_packer_left_that_was_killed_at_its_end_goes_with_the_next_call(tree, tmp_path):
    out = tmp_path / "records"
    prepare(tree, "train", out)
    whole = sorted(os.listdir(out))
    for name in (".train.lock", "train.0123456789ab.rec", "train.0123456789ab.npz"):
        (out / name).write_bytes(b"")
    prepare(tree, "train", out)
    assert sorted(os.listdir(out)) == whole


def test_sets_of_two_names_are_packed_at_once(tree, tmp_path):
    out, started = tmp_path / "records", FORK.Event()
    first = FORK.Process(target=_pack_slowly, args=(tree, out, started))
    first.start()
    try:
        assert started.wait(20)
        names = tree.names("train")
        assert len(pack_images(out, "val", names, [tree.image_path(name) for name in names],
                               tree.labels(names), tree.classes)) == 12
    finally:
        first.kill()
        first.join()


def test_a_file_that_changes_between_check_and_packing_is_named(tree, tmp_path, monkeypatch):
    real = packing.check_images

    def check_then_change(paths, **options):
        checked = real(paths, **options)
        with open(paths[3], "ab") as stream:
            stream.write(b"more")
        return checked

    monkeypatch.setattr(packing, "check_images", check_then_change)
    with pytest.raises(InputError, match=r"image_03\.jpg: changed while it was packed"):
        pack_some(tree, tmp_path / "records", 12)
    assert os.listdir(tmp_path / "records") == []


@pytest.mark.parametrize("name", ["", "../train", ".hidden", "a b", "a/b"])
def test_a_name_that_is_no_file_name_is_refused(tree, tmp_path, name):
    with pytest.raises(InputError, match="not a good name"):
        pack_images(tmp_path / "records", name, [], [], tree.labels([]), tree.classes)


@pytest.mark.parametrize("num_parts", [0, 13])
def test_more_parts_than_records_are_refused(tree, tmp_path, num_parts):
    with pytest.raises(InputError, match="cannot be spread over"):
        prepare(tree, "train", tmp_path / "records", num_parts=num_parts, workers=1)


def test_a_folder_that_is_a_file_is_named(tree, tmp_path):
    (tmp_path / "records").write_text("")
    with pytest.raises(InputError, match="records"):
        prepare(tree, "train", tmp_path / "records", workers=1)
