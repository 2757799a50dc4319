"""What results were made from."""
import os

from cian.tools.engine.ledger import NAME, Ledger, mark, unchanged


def test_a_file_is_the_same_by_size_and_time_or_else_by_its_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    known = mark(path)
    assert unchanged(path, known)
    os.utime(path, (1, 1))
    assert unchanged(path, known)
    path.write_bytes(b"two")
    assert not unchanged(path, known)
    path.write_bytes(b"three")
    assert not unchanged(path, known)
    path.unlink()
    assert not unchanged(path, known) and mark(path) == [] and unchanged(path, [])


def test_the_last_line_counts_and_a_half_written_one_does_not(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"one")
    ledger = Ledger(tmp_path)
    assert not ledger.same("a", {"image": source})
    ledger.add("a", {"image": mark(source)}, {"note": 1}, allowed=(1, 2))
    with open(tmp_path / NAME, "ab") as stream:
        stream.write(b'{"name": "a", "files": {}')
    again = Ledger(tmp_path)
    assert again.same("a", {"image": source}, allowed=(1, 2)) and again["a"]["note"] == 1
    assert not again.same("a", {"image": source}) and not again.same("a", {}, allowed=(1, 2))
    assert not again.same("a", {"mask": source}, allowed=(1, 2))
    again.add("b", {"image": mark(source)})
    again.add("c", {"image": mark(source)})
    assert all(Ledger(tmp_path).same(name, {"image": source}) for name in "bc")
    source.write_bytes(b"two")
    assert not again.same("a", {"image": source}, allowed=(1, 2))
