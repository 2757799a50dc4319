"""RecordIO framing against MXNet's own reader and writer."""
import struct

import mxnet as mx
import numpy as np
import pytest

from cian.data.framing import MAGIC, MAX_BYTES, frame, unframe

CONTENTS = [b"", b"a", b"abc", b"abcd", b"abcde", MAGIC, MAGIC * 3, b"x" + MAGIC, b"abcd" + MAGIC + b"e",
            MAGIC + b"abc" + MAGIC, b"abcd" + MAGIC + MAGIC + b"efgh" + MAGIC, b"ab" + MAGIC + b"cd" + MAGIC,
            *(np.random.RandomState(0).bytes(size) + MAGIC * (size % 3) for size in range(1, 60, 7))]


def test_mxnet_reads_what_we_frame_and_frames_as_we_do(tmp_path):
    (tmp_path / "ours.rec").write_bytes(b"".join(frame(content) for content in CONTENTS))
    reader = mx.recordio.MXRecordIO(str(tmp_path / "ours.rec"), "r")
    assert [reader.read() for _ in CONTENTS] == CONTENTS
    reader.close()
    writer = mx.recordio.MXRecordIO(str(tmp_path / "theirs.rec"), "w")
    for content in CONTENTS:
        writer.write(content)
    writer.close()
    assert (tmp_path / "theirs.rec").read_bytes() == (tmp_path / "ours.rec").read_bytes()


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_unframing_gives_the_content_back(content):
    record = frame(content)
    assert len(record) % 4 == 0 and unframe(record) == content


def word(kind, length):
    return MAGIC + struct.pack("<I", kind << 29 | length)


@pytest.mark.parametrize(
    ("record", "problem"),
    [(b"", "no record starts at byte 0"), (b"\0" * 12, "no record starts"), (MAGIC, "no record starts"),
     (word(0, 4) + b"ab", "beyond"), (word(0, 0) + b"abcd", "ends at byte 8 of 12"),
     (word(2, 0), "out of order"), (word(3, 0), "out of order"), (word(7, 0), "out of order"),
     (word(1, 0), "no record starts at byte 8"), (word(1, 0) + word(0, 0), "out of order"),
     (word(1, 0) + word(1, 0), "out of order"), (word(0, MAX_BYTES), "beyond")])
def test_damaged_frames_say_what_is_wrong(record, problem):
    with pytest.raises(ValueError, match=problem):
        unframe(record)


def test_a_content_that_no_record_holds_is_refused():
    class Long(bytes):
        def __len__(self):
            return MAX_BYTES + 1

    with pytest.raises(ValueError, match="at most"):
        frame(Long())
