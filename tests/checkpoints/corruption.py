"""Damaged safetensors files from a fixed seed."""

import json

import numpy as np

HUGE_SHAPE = {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**62]}
HUGE_EMPTY = {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}


def _with_header(data: bytes, header: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _changed_header(data: bytes, generator) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = generator.choice([key for key in header if key != "__metadata__"])
    changes = [
        {"dtype": "F64"},
        {"dtype": "I32"},
        {"dtype": "F8_E4M3"},
        {"dtype": "Q7"},
        {"dtype": 3},
        {"shape": [2**40]},
        {"shape": [-1]},
        {"shape": "long"},
        {"shape": [1.5]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        HUGE_SHAPE,
        HUGE_EMPTY,
    ]
    header[name] = {**header[name], **changes[generator.integers(len(changes))]}
    return _with_header(data, json.dumps(header).encode())


def _other_header(data: bytes, generator) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    first = header.index(b"{", 1)
    end = header.index(b"}", first) + 1
    others = [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe" * 20,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + header[1:end] + b"," + header[1:],
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": []}',
        b" " * 5_000_000,
    ]
    return _with_header(data, others[generator.integers(len(others))])


def _flipped_header_bit(data: bytes, generator) -> bytes:
    # In the first tensor's dtype, shape or offsets: a flip in a value of a tensor is a value.
    length = int.from_bytes(data[:8], "little")
    start = data.index(b'"dtype"', 0, 8 + length)
    place = int(generator.integers(start, data.index(b"}", start)))
    changed = bytearray(data)
    changed[place] ^= 1 << int(generator.integers(7))
    return bytes(changed)


def _wrong_length(data: bytes, generator) -> bytes:
    lengths = [0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1, len(data) - 8, len(data)]
    length = lengths[generator.integers(len(lengths))] ^ int(generator.integers(2))
    return length.to_bytes(8, "little") + data[8:]


def _truncated(data: bytes, generator) -> bytes:
    return data[: int(generator.integers(len(data)))]


def _longer(data: bytes, generator) -> bytes:
    return data + bytes(int(generator.integers(1, 100)))


def _noise(data: bytes, generator) -> bytes:
    return generator.bytes(int(generator.integers(200)))


KINDS = (
    _changed_header,
    _other_header,
    _flipped_header_bit,
    _wrong_length,
    _truncated,
    _longer,
    _noise,
)


def corrupted(data: bytes, seed: int) -> tuple[str, bytes]:
    """Return (the kind of damage, the damaged file)."""
    generator = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    return kind.__name__, kind(data, generator)
