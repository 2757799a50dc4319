import math
import os
import re

import pytest

from cian.errors import InputError
from cian.tools.engine.training.logs import Clock, Meter, RunLog, duration
from cian.tools.engine.training.scalars import NAME, append_scalars, read_scalars


def test_a_meter_weighs_every_image_the_same_whatever_its_step():
    meter = Meter()
    meter.add("loss", 6.0, 2)
    meter.add("loss", 1.0, 5)
    meter.add("nothing", 0.0, 0)
    means = meter.take()
    assert means["loss"] == 1.0 and math.isnan(means["nothing"]) and meter.take() == {}


def test_a_meter_goes_on_from_its_state():
    one, two = Meter(), Meter()
    one.add("loss", 3.0, 2)
    two.load_state_dict(one.state_dict())
    for meter in (one, two):
        meter.add("loss", 4.0, 5)
    assert one.take() == two.take() == {"loss": 1.0}


def test_the_clock_leaves_the_first_step_out_of_its_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cian.tools.engine.training.logs.time.monotonic", lambda: now[0])
    clock = Clock()
    assert math.isnan(clock.seconds_left(5))
    now[0] += 50  # builds the graph
    clock.tick()
    for _ in range(4):
        now[0] += 2
        clock.tick()
    assert clock.seconds_left(7) == 14.0
    assert clock.images_per_second(29) == pytest.approx(29 / 58)
    now[0] += 2
    assert clock.images_per_second(8) == 4.0


@pytest.mark.parametrize("seconds, text", [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"),
                                           (math.nan, "?"), (360000, "100:00:00")])
def test_a_duration_reads_as_a_clock(seconds, text):
    assert duration(seconds) == text


def test_lines_are_appended_with_the_time_and_printed(tmp_path, capsys):
    for text in ("first", "second"):
        with RunLog(tmp_path, "model", total=3) as log:
            log.line(text)
    written = (tmp_path / "model.log").read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in written] == ["first", "second"]
    assert capsys.readouterr().out.splitlines() == written


def test_a_line_is_on_the_disk_before_the_log_is_closed(tmp_path):
    with RunLog(tmp_path, "model", total=3) as log:
        log.line("now")
        assert (tmp_path / "model.log").read_text(encoding="utf-8").endswith("now\n")


def test_a_resumed_run_hides_the_scalars_that_the_killed_one_left_behind_its_state(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with RunLog(tmp_path, "model", total=5, done=done) as log:
            for step in steps:
                log.scalars({"loss": 10.0 * done + step}, step)
    events = [event for name in sorted(os.listdir(tmp_path / "tensorboard")) if name != NAME
              for event in read_events(tmp_path / "tensorboard" / name)]
    assert [(e.step, e.summary.value[0].simple_value)
            for e in events if e.summary.value] == [(1, 1), (2, 2), (3, 3), (3, 23), (4, 24)]
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [3]


def read_events(path):
    import struct

    from tensorboardX.proto.event_pb2 import Event
    content = path.read_bytes()
    while content:
        length = struct.unpack_from("<Q", content)[0]
        yield Event.FromString(content[12:12 + length])
        content = content[16 + length:]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.log: cannot be written"):
        RunLog(tmp_path / "file", "model", total=1)


def test_scalars_are_read_back_the_later_of_a_repeated_step_and_no_torn_one(tmp_path):
    for values, done in ((((1, 0.5), (2, 0.25)), 0), (((2, 0.75), (3, 0.125)), 1)):
        with RunLog(tmp_path, "net", total=3, done=done) as log:
            for step, value in values:
                log.scalars({"loss": value}, step)
    assert read_scalars(tmp_path / "tensorboard") == {"loss": [(1, 0.5), (2, 0.75), (3, 0.125)]}
    curves = tmp_path / "tensorboard" / NAME
    curves.write_bytes(curves.read_bytes()[:-3])
    assert read_scalars(tmp_path / "tensorboard") == {"loss": [(1, 0.5), (2, 0.75)]}
    with RunLog(tmp_path, "net", total=3, done=2) as log:
        log.scalars({"loss": 0.0625}, 3)
    assert read_scalars(tmp_path / "tensorboard") == {"loss": [(1, 0.5), (2, 0.75), (3, 0.0625)]}
    curves.write_bytes(b"")  # of a run that was killed at its start
    assert read_scalars(tmp_path / "tensorboard") == {}


def test_the_curves_of_every_cut_are_those_of_the_whole_lines_before_it(tmp_path):
    for step in (1, 2, 3):
        append_scalars(tmp_path, step, {"loss": step / 3, "rate": math.inf})
    content = (tmp_path / NAME).read_bytes()
    for length in range(len(content)):
        (tmp_path / NAME).write_bytes(content[:length])
        steps = content[:length].count(b"}")
        assert [step for step, _ in read_scalars(tmp_path).get("loss", ())] == [1, 2, 3][:steps]


def test_a_damaged_line_is_told_and_not_drawn(tmp_path):
    with RunLog(tmp_path, "m", 1) as log:
        log.scalars({"loss": 0.5}, 1)
    path = tmp_path / "tensorboard" / NAME
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4"))
    with pytest.raises(InputError, match="scalars.jsonl: line 2 is damaged .its checksum does not hold"):
        read_scalars(tmp_path / "tensorboard")
