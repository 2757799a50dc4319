"""Both engines predict and make seeds from the same images, and their logits and labels are compared."""
import json

import engines
import pytest
from loader import generated_tree

pytest.importorskip("onnxruntime")


def test_networks_and_seeds_are_compared_between_both_engines(tmp_path, capsys):
    generated_tree(str(tmp_path), 3, (197, 213))
    arguments = ["--data", str(tmp_path), "--list", str(tmp_path / "train.txt"), "--json",
                 str(tmp_path / "e.json"), "--networks", "resnet18_largefov", "--seeds", "resnet18",
                 "--rounds", "1"]
    assert engines.main(arguments) == 0
    assert "resnet18: onnxruntime is " in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())["found"]
    assert 1e-8 < found["resnet18_largefov"]["largest_error"] < 1e-3
    assert 0.999 < found["resnet18_largefov"]["equal_labels"] <= 1
    assert all(found["resnet18"]["median_s"][engine]["median"] > 0 for engine in engines.ENGINES)
