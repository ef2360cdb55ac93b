"""Damage to CTranslate2's list of variables: counts and lengths that lie, aliases of nothing, of each other, of all."""

import struct
from typing import Any

from tests.fuzz import mutate

Record = tuple[bytes, bytes]  # a name's bytes, and what follows them


def damaged(content: bytes, draw: Any) -> bytes:
    """Change what the file says of its variables, or some of its bytes."""
    if draw.randrange(4) == 0:
        return mutate.damaged(content, draw)
    head, records, pairs = _parsed(content)
    count, aliases = len(records), len(pairs)
    for _ in range(draw.choice((1, 1, 2))):
        i = draw.randrange(len(records))
        name, rest = records[i]
        match draw.randrange(12):
            case 0:
                count = draw.choice((0, 1, count - 1, count + 1, 2**31, 2**32 - 1))
            case 1:
                aliases = draw.choice((0, aliases + 1, 2**32 - 1))
            case 2:
                records[i] = (name, _lying(rest, draw))
            case 3:
                records[i] = (draw.choice((b"", b"\xff\xfe", b"a" * 60_000, b"\x1b]0;x\x07", b"encoder/\0x")), rest)
            case 4:
                records.insert(i, records[i])
                count += 1
            case 5:
                del records[i]
                count -= 1
            case 6:
                other = draw.randrange(len(records))
                records[i], records[other] = (name, records[other][1]), (records[other][0], rest)
            case 7:
                pairs.append((b"a", draw.choice((b"a", b"b", b"nothing", name))))
                pairs.append((b"b", draw.choice((b"a", b"b", name))))
                aliases += 2
            case 8:  # many names for one array
                many = [(b"encoder/%d" % n, name) for n in range(draw.choice((20, 3000)))]
                pairs += many
                aliases += len(many)
            case 9:  # layers that are all one another
                more = [(n.replace(b"layer_1", b"layer_%d" % k), n) for n, _ in records for k in range(2, 40)]
                pairs += [pair for pair in more if b"layer_1" in pair[1]]
                aliases = len(pairs)
            case 10:
                pairs.append((name, records[draw.randrange(len(records))][0]))
                aliases += 1
            case 11:
                head = draw.choice((head[:-1], head + b"\0", b"\x06\0\0\0\xff\xff", b"\x07" + head[1:]))
        if not records:
            break
    body = b"".join(_name(name) + rest for name, rest in records)
    tail = b"".join(_name(one) + _name(other) for one, other in pairs)
    return head + struct.pack("<I", count % 2**32) + body + struct.pack("<I", aliases % 2**32) + tail


def _lying(rest: bytes, draw: Any) -> bytes:
    """Change an array's axes, sizes, type or length."""
    axes = rest[0]
    sizes = list(struct.unpack_from(f"<{axes}I", rest, 1))
    kind, size = struct.unpack_from("<BI", rest, 1 + 4 * axes)
    data = rest[6 + 4 * axes :]
    match draw.randrange(5):
        case 0:
            sizes = draw.choice(([], [0], sizes[::-1], [2**31, 2], [2**16] * 4, [1] * 200, [size], [size, 0]))
        case 1:
            kind = draw.choice((0, 1, 2, 3, 4, 5, 6, 255))
        case 2:
            size = draw.choice((0, size - 1, size + 1, 2**31, 2**32 - 1))
        case 3:
            axes = draw.choice((0, 1, 9, 255))
        case 4:
            data = struct.pack("<e", draw.choice((float("nan"), float("inf"), 6e4))) * (len(data) // 2)
            data = data.ljust(size, b"\xff")
    return struct.pack(f"<B{len(sizes)}I", axes % 256, *sizes) + struct.pack("<BI", kind, size % 2**32) + data


def _parsed(content: bytes) -> tuple[bytes, list[Record], list[tuple[bytes, bytes]]]:
    """Split an undamaged file: what is before the count, variables, aliases."""
    start = 4 + _length(content, 4) + 4
    records, at = [], start + 4
    for _ in range(_u32(content, start)):
        name, at = _read(content, at)
        first, axes = at, content[at]
        at += 1 + 4 * axes + 1
        at += 4 + _u32(content, at)
        records.append((name, content[first:at]))
    pairs, count = [], _u32(content, at)
    at += 4
    for _ in range(count):
        one, at = _read(content, at)
        other, at = _read(content, at)
        pairs.append((one, other))
    return content[:start], records, pairs


def _length(content: bytes, at: int) -> int:
    return 2 + int.from_bytes(content[at : at + 2], "little")


def _read(content: bytes, at: int) -> tuple[bytes, int]:
    end = at + _length(content, at)
    return content[at + 2 : end].removesuffix(b"\0"), end


def _u32(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")


def _name(text: bytes) -> bytes:
    return struct.pack("<H", (len(text) + 1) % 2**16) + text + b"\0"
