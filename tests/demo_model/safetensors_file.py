"""Reads and writes safetensors files; with the standard library and numpy."""

import json
import struct

import numpy

TYPES = {"F32": numpy.float32, "BF16": numpy.uint16, "I32": numpy.int32, "I64": numpy.int64}


def bfloat16(array):
    """float32 -> the upper halves of the nearest values that BF16 has, as uint16; a tie goes to the even one."""
    bits = numpy.ascontiguousarray(array, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(numpy.uint16)


def write(path, tensors):
    """Arrays of uint16 are written as BF16."""
    header, data, at = {}, [], 0
    for name, array in tensors.items():
        array = numpy.ascontiguousarray(array)
        kind = next(key for key, value in TYPES.items() if value == array.dtype)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        data.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for part in data:
            out.write(part)


def read(path):
    with open(path, "rb") as source:
        content = source.read()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + size])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = numpy.frombuffer(content[8 + size + begin:8 + size + end], TYPES[entry["dtype"]])
            out[name] = array.reshape(entry["shape"])
    return out
