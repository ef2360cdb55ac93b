"""Damage of every kind, drawn by a `random.Random`: to bytes, text tables, JSON, YAML, zips, pickles and headers."""

import io
import json
import pickle
import pickletools
import struct
import zipfile
import zlib

# Numbers, texts and nests that readers take for something else, or that take memory or time if they are believed.
NUMBERS = (0, -1, 1, 2, 3, 5, 7, 16, 10**6, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**20, 10**400)
FLOATS = (float("nan"), float("inf"), -float("inf"), 1e308, -0.5, 5e-324, 0.5)
TEXTS = (
    "",
    "abc",
    "\ud800",
    "\x1b]0;t\x07\n",
    "0",
    "nan",
    "x" * 10**5,
    "../../etc/passwd",
    "\0",
    "[(1,1,1)] * 64",
    "é",
)
OTHERS = (None, True, False, [], {}, [[]], ["x"], {"a": 1}, [0], [-1], [10**9] * 3, {"kind": "full"})
WORDS = (
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "9" * 5000,
    "1e308",
    "",
    "x",
    "\t",
    "\r",
    "\0",
    "\x1b[2J",
    "é",
    '"',
    "99999999999",
)
BOMBS = (
    b"cos\nsystem\n(S'touch pwned'\ntR.",
    b'c__builtin__\neval\n(S\'open("pwned","w")\'\ntR.',
    b"cbuiltins\ngetattr\n(cos\nS'system'\ntR.",
    b"Nr\xff\xff\xff\x1f",
    b")" + b"2\x86" * 60,
    b"\x85" * 5000,
    b"]" * 3000,
    b"\x8b\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"K\x00\x94" * 1000,
    b"I" + b"9" * 5000 + b"\n",
    b"F1e400\n",
    b"\x88\x89N0",
    b"b",
    b"R",
    b"Q",
    b"a",
    b"s",
    b"u",
    b"e",
)


def value(draw):
    """Something that belongs nowhere."""
    kind = draw.randrange(6)
    if kind == 5:
        nest = []
        for _ in range(draw.choice((5, 60, 900))):
            nest = [nest]
        return nest
    return draw.choice((NUMBERS, NUMBERS, FLOATS, TEXTS, OTHERS)[kind])


def damaged(data, draw):
    """Bytes with a few faults: flipped bits, swapped numbers, pieces cut out, doubled, moved or replaced."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 12))):
        if not data:
            break
        # Heads and tails have the structure, and get half of the faults.
        at = draw.choice(
            (draw.randrange(len(data)), draw.randrange(min(len(data), 600)), -1 - draw.randrange(min(len(data), 600)))
        )
        at %= len(data)
        length = draw.choice((1, 2, 4, 8, 30, 500))
        match draw.randrange(9):
            case 0 | 1:
                data[at] ^= 1 << draw.randrange(8)
            case 2:
                data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                form = draw.choice(["<H", "<I", "<Q", ">H", ">I", ">Q", "<f", "<d"])
                packed = _number(form, draw)
                data[at : at + len(packed)] = packed
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                other = draw.randrange(len(data))
                data[at : at + length] = data[other : other + length]
            case 7:
                del data[at:]
            case 8:
                data[at:at] = draw.randbytes(length)
    return bytes(data)


def _number(form, draw):
    if form[1] in "fd":
        return struct.pack(form, draw.choice((float("nan"), float("inf"), 3e38, 0.0, -1.0)))
    bits = 8 * struct.calcsize(form)
    return struct.pack(
        form, draw.choice((0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, draw.getrandbits(bits)))
    )


def words(text, draw):
    """A table's or a command's text with cells, lines and numbers replaced."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        lines = text.split("\n")
        i = draw.randrange(len(lines))
        cells = lines[i].split("\t") if "\t" in lines[i] else lines[i].split(" ")
        j = draw.randrange(len(cells))
        match draw.randrange(7):
            case 0 | 1 | 2:
                cells[j] = draw.choice(WORDS)
            case 3:
                del cells[j]
            case 4:
                cells.insert(j, cells[j])
            case 5:
                lines.insert(i, lines[draw.randrange(len(lines))])
            case 6:
                cells[j] = cells[j][: len(cells[j]) // 2]
        lines[i] = ("\t" if "\t" in lines[i] else " ").join(cells)
        text = "\n".join(lines)
    return text


def tree(values, draw):
    """JSON values with a few of them replaced, removed, doubled or moved."""
    values = json.loads(json.dumps(values))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(values))
        if not places:
            return value(draw)
        holder, key = draw.choice(places)
        match draw.randrange(8):
            case 0 | 1 | 2 | 3:
                holder[key] = value(draw)
            case 4:
                del holder[key]
            case 5:
                other, at = draw.choice(places)
                if at in other if isinstance(other, dict) else at < len(other):
                    holder[key] = json.loads(json.dumps(other[at])) if _small(other[at]) else None
            case 6:
                if isinstance(holder, dict):
                    holder[draw.choice(TEXTS[:6])] = holder.pop(key)
                else:
                    holder.append(holder[key])
            case 7:
                return draw.choice((value(draw), values))
    return values


def _small(item):
    try:
        return len(json.dumps(item)) < 10**5
    except (ValueError, RecursionError):
        return False


def _places(values):
    found = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, each in found:
        yield values, key
        yield from _places(each)


def json_text(values, draw):
    """JSON as a file, edited as values or as bytes."""
    if draw.randrange(4):
        try:
            text = json.dumps(tree(values, draw))
        except (ValueError, RecursionError):  # numbers of over 4,300 digits cannot be written so
            text = json.dumps(values)
        text = text.replace('"abc"', draw.choice(('"abc"', "1e400", "9" * 5000, "[" * 3000 + "]" * 3000)))
        return text.encode("utf-8", "surrogatepass")
    return damaged(json.dumps(values, indent=draw.choice((None, 1))).encode(), draw)


def zipped(data, draw):
    """A stored zip whose entries are changed and sealed again, so that readers see what is in them."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    names = list(entries)
    inner = [name for name in names if name.endswith("data.pkl")]
    name = inner[0] if inner and draw.randrange(6) else draw.choice(names)
    match draw.randrange(12):
        case 0:
            del entries[name]
        case 1:
            entries[draw.choice(("../x", "archive/data/0", name + "x", "byteorder", "archive/byteorder"))] = b"big"
        case 2:
            entries[name] = damaged(entries[name], draw)
        case _:
            entries[name] = pickled(entries[name], draw) if name.endswith(".pkl") else damaged(entries[name], draw)
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if draw.randrange(30) == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as target:
        for each, content in entries.items():
            target.writestr(each, content)
    return file.getvalue()


def pickled(program, draw):
    """A pickle whose values and opcodes are changed one by one; what follows it stays behind it."""
    try:
        operations = list(pickletools.genops(program))
    except Exception:  # of a damaged one
        return damaged(program, draw)
    starts = [at for _, _, at in operations]
    pieces = [program[a:b] for a, b in zip(starts, [*starts[1:], operations[-1][2] + 1], strict=True)]
    rest = program[operations[-1][2] + 1 :]
    plain = [
        i
        for i, (o, _, _) in enumerate(operations)
        if o.stack_before == [] and len(o.stack_after) == 1 and "GET" not in o.name
    ]
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        i = draw.choice(plain) if draw.randrange(4) else draw.randrange(len(pieces))
        match draw.randrange(10):
            case 0 | 1 | 2 | 3:
                pieces[i] = _assembled(value(draw))
            case 4 | 5:
                pieces[i] = draw.choice(OBJECTS)
            case 6:
                pieces[i] = pieces[draw.randrange(len(pieces))]
            case 7:
                pieces[i] = b""
            case 8:
                pieces.insert(i, draw.choice(BOMBS))
                plain = [each + (each >= i) for each in plain]
            case 9:
                j = draw.randrange(len(pieces))
                pieces[i], pieces[j] = pieces[j], pieces[i]
    return b"".join(pieces) + rest


OBJECTS = (  # what pickles of the field's programs hold beside plain values: classes, instances, references, bytes
    b"ccollections\nOrderedDict\n",
    b"ccollections\nOrderedDict\n)R",
    b"ccollections\ndefaultdict\n(ccollections\nOrderedDict\ntR",
    b"cargparse\nNamespace\n",
    b"cargparse\nNamespace\n)\x81",
    b"cargparse\nNamespace\n)\x81}X\x04\x00\x00\x00_valK\x05sb",
    b"cargparse\nNamespace\n)\x81}X\x08\x00\x00\x00_content]sb",
    b"comegaconf.listconfig\nListConfig\n)\x81}X\x08\x00\x00\x00_content]K\x01asb",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n(K\x03K\x04tR",
    b"ctorch\nfloat32\n",
    b"c_codecs\nencode\n(X\x02\x00\x00\x00abX\x06\x00\x00\x00latin1tR",
    b"cbuiltins\nset\n(]K\x01atR",
    b"cpathlib\nPosixPath\n(X\x01\x00\x00\x00atR",
    b"C\x02ab",
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"}K\x01K\x02s",
    b"}X\x05\x00\x00\x00modelK\x02s",
    b"(]t",
)


def _assembled(item):
    """Opcodes that put a value on the stack and keep nothing beside it."""
    try:
        return pickletools.optimize(pickle.dumps(item, 2))[2:-1]
    except (RecursionError, UnicodeEncodeError):
        return b"]"


def npy(data, draw):
    """A .npy file with another header, or damaged as bytes."""
    if draw.randrange(3) == 0:
        return damaged(data, draw)
    length = int.from_bytes(data[8:10], "little")
    header, body = data[10 : 10 + length].decode(), data[10 + length :]
    one = draw.choice(("'descr': ", "'fortran_order': ", "'shape': "))
    start, _, rest = header.partition(one)
    end = rest.index(", '") if ", '" in rest else rest.index("}")
    odd = (
        "()",
        "(0,)",
        "(0, 5)",
        "(10**9,)",
        "(1000000000, 40)",
        "(-1, 5)",
        "'|O'",
        "'<f8'",
        "'<c16'",
        "'<U9'",
        "'<i4'",
        "'<M8[s]'",
    )
    odd += (
        "[('a', '<f4')]",
        "True",
        "None",
        "'x'",
        "(" * 60 + ")" * 60,
        "9" * 5000,
        "{}",
        "(2, 5)",
        "(3,)",
        "'|S4'",
        "'|b1'",
    )
    header = start + one + draw.choice(odd) + rest[end:]
    return b"\x93NUMPY\x01\x00" + (len(header) & 0xFFFF).to_bytes(2, "little") + header.encode() + body


def npz(data, draw):
    """A .npz whose arrays have other headers, are missing or compressed lies, or damaged as bytes."""
    if draw.randrange(3) == 0:
        return damaged(data, draw)
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    name = draw.choice(list(entries))
    match draw.randrange(6):
        case 0:
            del entries[name]
        case 1:
            entries["more.npy"] = entries[name]
        case _:
            entries[name] = npy(entries[name], draw)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as target:
        for each, content in entries.items():
            target.writestr(each, content)
    return file.getvalue()


def safetensors(data, draw):
    """A safetensors file with another header, or damaged as bytes."""
    if draw.randrange(4) == 0:
        return damaged(data, draw)
    length = int.from_bytes(data[:8], "little")
    header = json_text(json.loads(data[8 : 8 + length]), draw)
    claimed = draw.choice((len(header), len(header), len(header), len(header) + 1, 2**63, 0, 2**31))
    return claimed.to_bytes(8, "little") + header + data[8 + length :]


def encoded(data, draw):
    """Encoded arrays (`compress.encoding`) with another header and a check sum that fits it."""
    magic, _, length = struct.unpack_from("<8sII", data)
    header = json_text(json.loads(data[16 : 16 + length]), draw) if draw.randrange(3) else data[16 : 16 + length]
    body = data[16 + length :] if draw.randrange(3) else damaged(data[16 + length :], draw)
    packed = len(header).to_bytes(4, "little")
    check = zlib.crc32(header + body, len(header))
    return magic + check.to_bytes(4, "little") + packed + header + body
