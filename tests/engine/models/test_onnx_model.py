import pytest

from cian.errors import InputError
from cian.tools.engine.models.onnx_model import check_model
from cian.tools.engine.models.to_onnx import GraphWriter, make_onnx


@pytest.mark.parametrize("attributes, allowed", [
    ({"pads": [3] * 4, "dilations": [64, 1], "group": 1280}, True),
    ({"pads": [-1] * 4}, False),  # onnxruntime ends the process with a signal
    ({"pads": [4096] * 4}, False),  # it takes gigabytes
    ({"auto_pad": 2 ** 40}, False), ({"group": 0}, False), ({"axis": -5}, False)])
def test_attributes_that_end_or_fill_a_process_are_refused_before_it_sees_them(attributes, allowed):
    pytest.importorskip("onnx")
    writer = GraphWriter()
    writer.add("Conv", ["images", writer.constant([[[[1.0]]] * 3], "float32")], name="conv", **attributes)
    shapes = {"images": [1, 3, 5, 7], "conv": [1, 1, 5, 7]}
    content = make_onnx(writer, "conv", shapes, {}, check=False).SerializeToString()
    if allowed:
        assert check_model(content, "m.onnx").graph.node[0].name == "conv"
    else:
        with pytest.raises(InputError, match=f"m.onnx: conv: the Conv attribute '{[*attributes][0]}' is not"):
            check_model(content, "m.onnx")
