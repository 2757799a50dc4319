"""Atomic files and locks."""
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

from cian.errors import InputError, Problems
from cian.files import (
    atomic_write,
    atomic_write_bytes,
    decoding,
    locked,
    read_bytes,
    read_text,
    staging,
)

FORK = multiprocessing.get_context("fork")


def test_a_written_file_is_whole_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path, "w") as stream:
        stream.write("grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert os.listdir(path.parent) == ["a.txt"]


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_of_the_block_that_cannot_be_read_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic_write(tmp_path / "a"):
        (tmp_path / "absent").read_text()


def _write_beyond_the_limit(path, result):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        atomic_write_bytes(path, bytes(5000))
    except InputError as error:
        result.put(str(error))


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    result = FORK.Queue()
    child = FORK.Process(target=_write_beyond_the_limit, args=(path, result))
    child.start()
    message = result.get(timeout=20)
    child.join()
    assert str(path) in message and "cannot be written" in message
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_that_may_not_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write_bytes(tmp_path / "file" / "new" / "below", b"y")


@pytest.mark.parametrize(("content", "problem"),
                         [(None, "does not exist"), (b"", "is empty"), (b"\xff\xfe\xfa", "not UTF-8")])
def test_reading_names_what_is_wrong_with_the_file(tmp_path, content, problem):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_text(path)
    assert caught.value.file == str(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(tmp_path)


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcat\n")
    assert read_text(tmp_path / "a.txt") == "cat\n"


def _hold(path, ready):
    with locked(path, "the set"):
        ready.set()
        time.sleep(60)


def test_a_held_lock_names_its_holder_and_a_killed_holder_frees_it(tmp_path):
    path, ready = tmp_path / "lock", FORK.Event()
    holder = FORK.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(20)
    with pytest.raises(InputError,
                       match=f"the set is being written by process {holder.pid}"), locked(path, "the set"):
        pass
    holder.kill()
    holder.join()
    with locked(path, "the set"):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_a_lock_ends_with_its_holder_and_not_with_what_that_has_forked(tmp_path):
    code = """
import os, sys, time
from cian.files import locked
with locked(sys.argv[1], "the set"):
    if os.fork():
        os.kill(os.getpid(), 9)
    time.sleep(20)
"""
    holder = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    assert holder.returncode == -signal.SIGKILL
    with locked(tmp_path / "lock", "the set"):
        pass


def test_a_lock_waits_for_a_holder_that_is_ending(tmp_path):
    path, ready = tmp_path / "lock", FORK.Event()
    holder = FORK.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(20)
    threading.Timer(0.5, holder.kill).start()
    with locked(path, "the set"):
        holder.join()


def _write_slowly(path, ready):
    with atomic_write(path) as stream:
        stream.write(b"half")
        ready.set()
        time.sleep(60)


def test_what_a_killed_writer_left_goes_with_the_next_writer_and_a_living_ones_stays(tmp_path):
    writers = []
    for name in ("dead", "living"):
        ready = FORK.Event()
        writers.append(FORK.Process(target=_write_slowly, args=(tmp_path / name, ready)))
        writers[-1].start()
        assert ready.wait(20)
    writers[0].kill()
    writers[0].join()
    try:
        atomic_write_bytes(tmp_path / "a", b"whole")
        assert sorted(name.split(".")[1] or name for name in os.listdir(tmp_path) if name != "a") == [
            str(writers[1].pid)]
    finally:
        writers[1].kill()
        writers[1].join()


def test_a_folder_for_unfinished_files_begins_empty_and_leaves_nothing(tmp_path):
    left = tmp_path / ".net.unfinished"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    with staging(tmp_path, "net", "this export") as hidden:
        assert os.listdir(hidden) == []
    assert os.listdir(tmp_path) == []


def test_many_problems_are_one_line_and_keep_every_one():
    problems = Problems([InputError(f"is wrong {number}", file=f"f{number}") for number in range(5)],
                        remedy="mend them")
    assert str(
        problems) == "5 problems: f0: is wrong 0 | f1: is wrong 1 | f2: is wrong 2 | and 2 more; mend them"
    copy = pickle.loads(pickle.dumps(problems))
    assert str(copy) == str(problems) and [p.file for p in copy.problems] == ["f0", "f1", "f2", "f3", "f4"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "latin-1"])
def test_text_of_another_encoding_is_told_so(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("im_1\nné\n".encode(encoding))
    with pytest.raises(InputError, match="a.txt: is not UTF-8 text .*save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_byte_order_marks_of_joined_files_are_no_part_of_a_name(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\n\ufeffb\n".encode())
    assert read_text(tmp_path / "a.txt").split() == ["a", "b"]


def test_a_missing_file_is_told_with_what_lies_beside_it(tmp_path):
    for name in ("im.JPG", "im.png", "other.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="im.jpg: does not exist; beside it there is im.JPG, im.png$"):
        read_bytes(tmp_path / "im.jpg")


@pytest.mark.parametrize("error", [IndexError("list index"), MemoryError(), RecursionError("deep"),
                                   struct.error("short")])
def test_whatever_a_decoder_raises_names_the_file(error):
    with pytest.raises(InputError, match="photo.png: is damaged .*; copy it again"), decoding(
            "photo.png", "is damaged", "copy it again"):
        raise error
