"""Opens mutated model files in a process of its own, for native code may take the process with it.

``python hostile_worker.py KIND FILE FIRST COUNT`` mutates FILE by the seeds FIRST.. and opens each
result as a user would; an :class:`InputError` or a network that runs is fine. The last line printed
is a JSON summary; before each file its seed goes to FILE.seed. Checksums are made to fit, as the
author of a hostile file would, so that every check behind them is reached.
"""
import json
import os
import random
import re
import resource
import sys
import time

from cian.errors import InputError

ABSURD = [0, -1, 1, 2, 7, 255, 65535, 65537, 2 ** 31 - 1, 2 ** 31, -2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 62,
          2 ** 63 - 1]
WORDS = ["Custom", "_npi_eye", "FullyConnected", "None", "(99999, 99999)", "(-1, -1)", "()", "[[[[", "1e308",
         "nan", "../../x", "\u0000", "é", "9" * 30, "_contrib_BilinearResize2D", "Reshape", "Embedding",
         "BatchNorm", "SliceChannel"]


def flip_bytes(content, rng, where=None):
    """1 to 8 bytes changed, a stretch cut out, doubled, or the end cut off."""
    content = bytearray(content)
    limit = where or len(content)
    kind = rng.randrange(8)
    at = rng.randrange(limit)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        del content[at:at + rng.randrange(1, 64)]
    elif kind == 2:
        content[at:at] = content[at:at + rng.randrange(1, 64)]
    elif kind == 3:
        content[at:at + 8] = (rng.choice(ABSURD) % 2 ** 64).to_bytes(8, "little")
    else:
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(limit)] = rng.randrange(256)
    return bytes(content)


def mutate_symbol(content, rng):
    """Bytes, a number of the text, a quoted word, or parts of the graph changed."""
    kind = rng.randrange(5)
    text = content.decode()
    if kind == 0:
        return flip_bytes(content, rng)
    if kind in (1, 2):
        found = list(re.finditer(r"-?\d+" if kind == 1 else r'"[^"]*"', text))
        match = rng.choice(found)
        new = str(rng.choice(ABSURD)) if kind == 1 else json.dumps(rng.choice(WORDS))
        return (text[:match.start()] + new + text[match.end():]).encode()
    graph = json.loads(text)
    nodes = graph["nodes"]
    one, other = rng.choice(nodes), rng.choice(nodes)
    if kind == 3:
        rng.choice([lambda: one.update(op=other["op"]), lambda: one.update(attrs=other.get("attrs", {})),
                    lambda: one.update(inputs=other["inputs"]), lambda: one.update(name=other["name"]),
                    lambda: nodes.remove(one), lambda: nodes.insert(rng.randrange(len(nodes)), other),
                    lambda: graph.update(heads=[[rng.randrange(len(nodes) + 3), rng.randrange(3), 0]])])()
    elif one.get("attrs"):
        key = rng.choice(list(one["attrs"]))
        one["attrs"][key] = rng.choice([*map(str, ABSURD), *WORDS, "(64, 64)", "65536", "0", "64", "(1, 1)",
                                        "(0, 0)", "-1"])
    return json.dumps(graph).encode()


def mutate_onnx(content, rng):
    """Bytes, or fields of the parsed model, changed."""
    import onnx
    if rng.random() < 0.4:
        return flip_bytes(content, rng)
    model = onnx.load_model_from_string(content)
    graph = model.graph
    node, other, tensor = rng.choice(graph.node), rng.choice(graph.node), rng.choice(graph.initializer)
    kind = rng.randrange(9)
    if kind == 0:
        node.op_type = rng.choice([other.op_type, "Loop", "If", "ConstantOfShape", "Expand", "Einsum"])
    elif kind == 1 and node.attribute:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice([0, -1, 63, 64, 2 ** 31, 2 ** 62])
        else:
            attribute.i = rng.choice([0, -1, 1, 4, 65536, 2 ** 62])
    elif kind == 2 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, 1, 2, 2 ** 31, 2 ** 62])
    elif kind == 3:
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../secret"
    elif kind == 4 and tensor.data_type == 7:
        tensor.raw_data = b"".join(rng.choice([0, -1, 3, 65536, 2 ** 40, 2 ** 63 - 1, -2 ** 63]).to_bytes(
            8, "little", signed=True) for _ in range(len(tensor.raw_data) // 8))
    elif kind == 5 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([other.output[0], tensor.name, "", "nowhere"])
    elif kind == 6:
        graph.node.remove(node)
    elif kind == 7:
        graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)].dim_value = rng.choice([0, 1, 3, 2 ** 31,
                                                                                            2 ** 62])
    else:
        tensor.dims.reverse()
    return model.SerializeToString()


def mutate_params(content, rng):
    """Bytes anywhere, in the header of the first array, or in the names at the end."""
    if rng.random() < 0.3:
        return flip_bytes(content[-3000:], rng).join([content[:-3000], b""])
    return flip_bytes(content, rng, rng.choice([None, 24, 64, 400]))


def mutate_metadata(content, rng):
    """A number, a word or bytes of the JSON changed."""
    text = content.decode()
    if rng.random() < 0.2:
        return flip_bytes(content, rng)
    match = rng.choice(list(re.finditer(r'-?\d+|"[^"]*"|\[[^][]*\]|true|false', text)))
    value = rng.choice([*ABSURD, *WORDS, None, True, [], {}, [1] * 99, 0.5, {"a": 1}, "resnet50_largefov",
                        ["x"]])
    return (text[:match.start()] + json.dumps(value) + text[match.end():]).encode()


MUTATIONS = {"metadata": mutate_metadata, "symbol": mutate_symbol, "onnx": mutate_onnx,
             "params": mutate_params}


def main(kind, path, first, count):
    """Print how many mutations were refused, how many ran, and what else happened."""
    import mxnet as mx
    import numpy as np

    from cian.data.classes import ClassTable
    from cian.symbols.metadata import read_metadata, write_metadata
    from cian.tools.engine.models.model_files import open_model
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    sidecar = read_metadata(path) if kind == "params" else None
    opened = path[:-len(".json")] if kind == "metadata" else path
    with open(path, "rb") as stream:
        content = stream.read()
    pixels = mx.nd.array(np.random.RandomState(0).uniform(0, 255, (1, 3, 17, 25)))
    refused, ran, wrong, problems = 0, 0, [], set()
    for seed in range(first, first + count):
        with open(path + ".seed", "w") as stream:
            stream.write(str(seed))
        with open(path, "wb") as stream:
            stream.write(MUTATIONS[kind](content, random.Random(seed)))
        if sidecar is not None:
            write_metadata(path, sidecar)
        started = time.monotonic()
        try:
            open_model(opened,
                       classes=ClassTable(["background", "cat", "dog"])).network(pixels)[0].wait_to_read()
            ran += 1
        except InputError as error:
            refused += 1
            problems.add(re.sub(r"[^a-z ]", "", error.problem)[:30])
            if "\n" in str(error) or os.path.dirname(path) not in str(error):
                wrong.append([seed, f"message does not name the file: {error}"])
        except Exception as error:  # any other kind is what this process looks for
            wrong.append([seed, f"{type(error).__name__}: {str(error)[:300]}"])
        if time.monotonic() - started > 20:
            wrong.append([seed, f"took {time.monotonic() - started:.0f} s"])
    print(json.dumps({"refused": refused, "ran": ran, "wrong": wrong, "problems": len(problems)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
