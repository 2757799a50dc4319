"""Seeded damage to files: what a bad disk, a broken copy, an editor or a hostile author may do to them."""
from __future__ import annotations

import io
import json
import random
import re
import struct
import zlib
from typing import Callable, Dict

import numpy as np

ABSURD = [0, -1, 1, 2, 7, 255, 65535, 65537, 2 ** 31 - 1, 2 ** 31, -2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 62,
          2 ** 63 - 1]
WORDS = ["Custom", "_npi_eye", "FullyConnected", "None", "(99999, 99999)", "(-1, -1)", "()", "[[[[", "1e308",
         "nan", "../../x", "\u0000", "é", "9" * 30, "_contrib_BilinearResize2D", "Reshape", "Embedding",
         "BatchNorm", "SliceChannel"]


def flip_bytes(content: bytes, rng: random.Random, where: int = 0) -> bytes:
    """1 to 8 bytes changed, a stretch cut out, doubled, or the end cut off."""
    changed = bytearray(content)
    limit = min(where, len(content)) or len(content)
    kind, at = rng.randrange(8), rng.randrange(limit)
    if kind == 0:
        del changed[at:]
    elif kind == 1:
        del changed[at:at + rng.randrange(1, 64)]
    elif kind == 2:
        changed[at:at] = changed[at:at + rng.randrange(1, 64)]
    elif kind == 3:
        changed[at:at + 8] = (rng.choice(ABSURD) % 2 ** 64).to_bytes(8, "little")
    else:
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(limit)] = rng.randrange(256)
    return bytes(changed)


def symbol_file(content: bytes, rng: random.Random) -> bytes:
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


def onnx_file(content: bytes, rng: random.Random) -> bytes:
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


def params_file(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere, in the header of the first array, or in the names at the end."""
    if rng.random() < 0.3:
        return flip_bytes(content[-3000:], rng).join([content[:-3000], b""])
    return flip_bytes(content, rng, rng.choice([0, 24, 64, 400]))


def metadata_file(content: bytes, rng: random.Random) -> bytes:
    """A number, a word or bytes of the JSON changed."""
    text = content.decode()
    if rng.random() < 0.2:
        return flip_bytes(content, rng)
    match = rng.choice(list(re.finditer(r'-?\d+|"[^"]*"|\[[^][]*\]|true|false', text)))
    value = rng.choice([*ABSURD, *WORDS, None, True, [], {}, [1] * 99, 0.5, {"a": 1}, "resnet50_largefov",
                        ["x"]])
    return (text[:match.start()] + json.dumps(value) + text[match.end():]).encode()


def text_file(content: bytes, rng: random.Random) -> bytes:
    """Lines lost, doubled, exchanged or stuffed; a word or number changed; another encoding; bytes."""
    lines = content.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(9)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(one, lines[other])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 3:
        lines[one] += rng.choice([b"\0", b" ", b"\t\t", b"\r", b"/../..", b": [", b": *a",
                                  b"\xff", b"\xe2\x80\xa8", b"&a", b" x" * 5000,
                                  b"!!python/object:os.system {}", b"\x1b[2J"])
    elif kind == 4:
        return content.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-8-sig", "utf-32"]))
    elif kind in (5, 6):
        found = list(re.finditer(rb"[\w.-]+", content))
        match = rng.choice(found)
        new = str(rng.choice([*ABSURD, *WORDS, "2001-99-99", "0x", "1:99:99", ".inf", "~", "{", "[" * 3000]))
        return content[:match.start()] + new.encode() + content[match.end():]
    else:
        return flip_bytes(content, rng)
    return b"\n".join(lines)


def png_file(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, or a field or the pixels of a chunk, whose checksum is made to fit."""
    if rng.random() < 0.5:
        return flip_bytes(content, rng)
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack_from(">I", content, at)[0]
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    if kind == b"IHDR":
        body = bytearray(body)
        if rng.random() < 0.5:
            side = rng.choice([0, 1, 7, 65535, 2 ** 31 - 1, 2 ** 32 - 1])
            struct.pack_into(">I", body, rng.choice([0, 4]), side)
        else:
            body[rng.randrange(8, 13)] = rng.choice([0, 1, 2, 3, 4, 6, 16, 255])
    elif kind == b"IDAT" and rng.random() < 0.7:
        body = zlib.compress(flip_bytes(zlib.decompress(body), rng))
    elif body and rng.random() < 0.7:
        body = flip_bytes(bytes(body), rng)
    else:
        chunks.insert(rng.randrange(len(chunks)), chunks[number])
    chunks[number] = (kind, bytes(body))
    return content[:8] + b"".join(struct.pack(">I", len(body)) + kind + body
                                  + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)


def jpeg_file(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere or among the headers, or the size that the frame's header announces."""
    if rng.random() < 0.3:
        at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        size = struct.pack(">H", rng.choice([0, 1, 7, 8000, 65535]))
        at += rng.choice([5, 7])
        return content[:at] + size + content[at + 2:]
    return flip_bytes(content, rng, rng.choice([0, 0, 700]))


def npz_file(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, or an array of it replaced by one of another type, shape or value."""
    if rng.random() < 0.6:
        return flip_bytes(content, rng)
    with np.load(io.BytesIO(content)) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    name = rng.choice(list(held))
    array = held[name]
    numbers = array.dtype.kind in "iuf"
    held[name] = rng.choice([array[..., None], array[:-1], array.astype("f8") if numbers else array[:0],
                             np.array(7), array[::-1], np.array(["x", "\0", "é"]),
                             np.full_like(array, 2) if numbers else array])
    stream = io.BytesIO()
    np.savez(stream, **held)
    return stream.getvalue()


MUTATORS: Dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": flip_bytes, "text": text_file, "json": metadata_file, "png": png_file, "jpeg": jpeg_file,
    "npz": npz_file, "symbol": symbol_file, "onnx": onnx_file, "params": params_file}
