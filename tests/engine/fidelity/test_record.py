"""The file of a comparison: what it is refused for."""
import pytest

from cian.errors import InputError
from cian.tools.engine.fidelity.record import REMEDY, Record


def test_a_file_of_other_versions_or_of_none_is_refused_by_what_is_wrong(tmp_path):
    path = str(tmp_path / "rows.json")
    Record({"numpy": "1"}, {"quick": True}).save(path)
    with pytest.raises(InputError) as caught:
        Record({"numpy": "2"}, {"quick": True}).resumed(path)
    assert str(caught.value) == (f"{path}: --resume: belongs to other versions: {{'numpy': '1'}}, not "
                                 f"{{'numpy': '2'}}; {REMEDY}")
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Record({"numpy": "2"}, {"quick": True}).resumed(path)
    assert str(caught.value) == f"{path}: is no file of a comparison; {REMEDY}"
