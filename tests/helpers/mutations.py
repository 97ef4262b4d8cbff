"""Ways in which a file can be wrong, drawn at random: each takes what a sound file holds and returns something near it.

Nothing here knows the package. JSON and YAML are changed as trees (a value of another type, a name given twice, nesting),
safetensors, PNG and torch's files by their parts with lengths and checksums made right again, and everything as bytes.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes], bytes]


class Object(list[list[Any]]):
    """A JSON object as its [name, value] pairs: a name may come twice."""


class Raw(str):
    """Stands in the file as it is."""


TEXTS = (
    *("", " ", "\t", "\n", "\r\n", "a\r\nb", "\x00", "a\x00b", "\x1b[2J", "\x7f", "\u200b", "\u202eabc", "\ufeff", "\ufffd"),
    *("é", "e\u0301", "ß", "İ", "日本語", "\U0001f600", "\ud800", "a\udfff", "\U0010ffff"),
    *("<image>", "<image>" * 9, "</s>", "<s>", "<unk>", "<pad>", "<|im_end|>", "USER: a ASSISTANT: b", "[INST] a [/INST]"),
    *(".", "..", "/", "~", "../secrets/secret.png", "/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/a.png"),
    *("photos", "photos/0.png", "photos/../photos/0.png", "photos//0.png", "photos/0.png/", "PHOTOS/0.PNG", "a/" * 3000, "-h"),
    *(
        "null",
        "true",
        "nan",
        "inf",
        "1e5",
        "0x10",
        "1_000",
        "٣",
        "½",
        "%s%n",
        "{0}{a}",
        "{{ a }}",
        "${HOME}",
        "$(id)",
        "\\",
        '"',
    ),
    *("a" * 300, "a " * 5000, "\u0301" * 500, "x" * 100_000),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 16, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.5, -0.5, 1.5, 1e-320, 1e308, -1e308, 3.0),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "-0", "1e999", "-1e999", "9" * 400, "9" * 5000, "0." + "1" * 5000)),
)
SHAPES = (
    *(None, True, False, Raw("[]"), Raw("{}"), Raw("[[]]"), Raw("[null]"), Raw('{"": null}'), Raw("[0, 1]"), Raw("[-1]")),
    *(Raw('[""]'), Raw("[1, [2, [3]]]"), Raw('{"a": {"a": {}}}'), Raw("[" + "0," * 5000 + "0]")),
    *(Raw("[" * depth + "]" * depth) for depth in (50, 3000, 100_000)),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in (50, 3000)),
)
SCRAPS = (
    *(b"", b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\r\n", b" ", b",", b":", b'"', b"'", b"\\"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"{}",
        b"[]",
        b"null",
        b"#",
        b"//",
        b"-",
        b"--- ",
        b"...",
        b"? ",
        b"& ",
        b"&a ",
        b"*a",
        b"!",
        b"|\n",
    ),
    *(b"!!python/name:os.system ", b"!!binary ", b"!!set ", b"!!omap ", b"!!pairs ", b"!!timestamp ", b"!!int ", b"!!float "),
    *(
        b"<<: *a",
        b"%YAML 9.9\n",
        b"2001-99-99",
        b"2001-01-01",
        b"1:2:3",
        b".nan",
        b".inf",
        b"0o7",
        b"0b1",
        b"=",
        b"\t",
        b"@",
        b"`",
    ),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\x1b[2J",
        b"\xf0\x9f\x98\x80",
        b"<image>",
        b"</s>",
        b"%",
        b"{% for i in range(9**9) %}",
        b"{{ a }}",
    ),
)


# -- bytes ------------------------------------------------------------------------------------------------------------


def as_bytes(draw: Random, data: bytes) -> bytes:
    """A few bytes flipped, cut out, doubled, moved or put in; or the end cut off."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        data = draw.choice(BYTES)(draw, data)
    return data


def _flip(draw: Random, data: bytes) -> bytes:
    if not data:
        return bytes([draw.randrange(256)])
    at = _near_the_front(draw, len(data))
    value = draw.choice((data[at] ^ (1 << draw.randrange(8)), draw.randrange(256), 0, 255, (data[at] + 1) % 256))
    return data[:at] + bytes([value]) + data[at + 1 :]


def _cut(draw: Random, data: bytes) -> bytes:
    return data[: draw.choice((draw.randint(0, len(data)), max(0, len(data) - draw.randint(1, 16)), 0, min(len(data), 8)))]


def _drop(draw: Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _double(draw: Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:end] + data[start:end] * draw.choice((1, 1, 2, 50)) + data[end:]


def _move(draw: Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    rest = data[:start] + data[end:]
    at = draw.randint(0, len(rest))
    return rest[:at] + data[start:end] + rest[at:]


def _insert(draw: Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice((*SCRAPS, draw.randbytes(draw.randint(1, 64)))) + data[at:]


def _replace(draw: Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + draw.choice((draw.choice(SCRAPS), bytes(end - start), b"\xff" * (end - start))) + data[end:]


BYTES = (_flip, _flip, _flip, _cut, _drop, _double, _move, _insert, _insert, _replace)


def _span(draw: Random, data: bytes) -> tuple[int, int]:
    start = _near_the_front(draw, len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 1, 2, 4, 8, 30, 300)))


def _near_the_front(draw: Random, size: int) -> int:
    """A place; half of the time among the first, where headers are."""
    return draw.randrange(min(size, 800) if draw.random() < 0.5 else size)


def as_text(draw: Random, data: bytes) -> bytes:
    """Lines dropped, doubled and swapped; other line ends and encodings; or as bytes."""
    lines = data.splitlines(keepends=True)
    how = draw.randrange(8)
    if how == 0 and lines:
        lines.insert(draw.randint(0, len(lines)), draw.choice(lines))
    elif how == 1 and lines:
        del lines[draw.randrange(len(lines))]
    elif how == 2:
        draw.shuffle(lines)
    elif how == 3:
        return data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"", b"\x00", b"\xe2\x80\xa8")))
    elif how == 4:
        encoding = draw.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-7"))
        return data.decode(errors="replace").encode(encoding, errors="replace")
    else:
        return as_bytes(draw, data)
    return b"".join(lines)


# -- trees ------------------------------------------------------------------------------------------------------------


def as_json(draw: Random, data: bytes) -> bytes:
    """A JSON document, mostly as a tree."""
    if draw.random() < 0.2:
        return as_text(draw, data)
    return _emit(_tree(draw, json.loads(data, object_pairs_hook=_pairs)), draw.choice((None, None, 2))).encode(
        errors="surrogatepass"
    )


def as_jsonl(draw: Random, data: bytes) -> bytes:
    """JSON lines: some of the rows as trees, or the file as text. Now and then the rows become one list."""
    if draw.random() < 0.2:
        return as_text(draw, data)
    rows = [json.loads(line, object_pairs_hook=_pairs) for line in data.splitlines()]
    for number in draw.sample(range(len(rows)), draw.choice((1, 1, 1, len(rows)))):
        rows[number] = _tree(draw, rows[number])
    if draw.random() < 0.1:
        return _emit(draw.choice((rows, Object([["data", rows]])))).encode(errors="surrogatepass")
    return "\n".join(map(_emit, rows)).encode(errors="surrogatepass")


def _pairs(pairs: list[tuple[str, Any]]) -> Object:
    return Object([list(pair) for pair in pairs])


def _tree(draw: Random, tree: Any) -> Any:
    root = [tree]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place, key = draw.choice(list(_places(root)))
        _change(draw, place, key)
    return root[0]


def _places(value: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Where a value stands: `place[key]` is one, for an object a [name, value] pair."""
    for key, item in enumerate(value):
        yield value, key
        inner = item[1] if isinstance(value, Object) else item
        if isinstance(inner, list):
            yield from _places(inner)


def _change(draw: Random, place: list[Any], key: int) -> None:
    pair = isinstance(place, Object)
    holder, at = (place[key], 1) if pair else (place, key)
    value = holder[at]
    match draw.randrange(12):
        case 0 | 1 | 2:
            holder[at] = draw.choice(draw.choice((TEXTS, NUMBERS, SHAPES)))
        case 3 | 4:
            holder[at] = _alike(draw, value)
        case 5 if pair or len(place) > 1:
            del place[key]
        case 6:
            place.insert(draw.randint(0, len(place)), list(place[key]) if pair else value)
        case 7 if pair:
            holder[0] = draw.choice((draw.choice(TEXTS), holder[0].upper(), holder[0][:-1], holder[0] + "s", holder[0] + " "))
        case 8:
            holder[at] = [value] * draw.choice((1, 2, 12))
        case 9:
            holder[at] = Object([[draw.choice(("", "a", "text", "image", "content", "value", "0")), value]])
        case 10:
            other = draw.randrange(len(place))
            place[key], place[other] = place[other], place[key]
        case _ if isinstance(value, list) and value:
            holder[at] = value[0][1] if isinstance(value, Object) else value[0]
        case _:
            holder[at] = draw.choice(TEXTS)


def _alike(draw: Random, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, Raw) or value is None or isinstance(value, bool):
        return draw.choice(SHAPES)
    if isinstance(value, int | float):
        return draw.choice((-value, value + 1, value - 1, value * 2, value / 3, value * 10**6, float(value), *NUMBERS))
    if isinstance(value, str):
        at = draw.randint(0, len(value))
        return draw.choice((value[:at] + draw.choice(TEXTS) + value[at:], value[:at], value * 20, value.upper(), value[::-1]))
    return draw.sample(value, len(value)) if not isinstance(value, Object) else Object(value + value)


def _emit(value: Any, indent: int | None = None) -> str:
    if isinstance(value, Raw):
        return value
    space = "\n" if indent else ""
    if isinstance(value, Object):
        return "{" + ("," + space).join(f"{_emit(name)}: {_emit(item, indent)}" for name, item in value) + space + "}"
    if isinstance(value, list):
        return "[" + ("," + space).join(_emit(item, indent) for item in value) + space + "]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and len(value) % 2 == 0)


def as_yaml(draw: Random, data: bytes) -> bytes:
    """A YAML document: as text, or the JSON in it as a tree (JSON is YAML)."""
    return as_json(draw, data) if data.lstrip()[:1] == b"{" and draw.random() < 0.7 else as_text(draw, data)


# -- files of parts ---------------------------------------------------------------------------------------------------


def as_safetensors(draw: Random, data: bytes) -> bytes:
    """The header as a tree, its length made right again, or wrong; numbers that are not finite; or as bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    how = draw.randrange(10)
    if how == 0:
        return as_bytes(draw, data)
    if how == 1:
        return draw.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    if how == 2:
        numbers = draw.choice((b"\x00\x7c", b"\x00\x7e", b"\xff\xff", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff"))
        at = draw.randrange(len(body)) & ~3
        return data[: 8 + size] + body[:at] + numbers + body[at + len(numbers) :]
    if how == 3:
        body = draw.choice((body[:-1], body + b"\0", body[: len(body) // 2], b""))
    elif how == 4:
        header = as_bytes(draw, header)
    else:
        tree = json.loads(header, object_pairs_hook=_pairs)
        for _ in range(draw.choice((1, 1, 2, 3))):
            tree = _retyped(draw, tree) if draw.random() < 0.6 else _tree(draw, tree)
        header = _emit(tree).encode(errors="surrogatepass")
    return len(header).to_bytes(8, "little") + header + body


def _retyped(draw: Random, tree: Any) -> Any:
    """One tensor of a header with another type, shape, place or name."""
    if not isinstance(tree, Object) or not tree:
        return tree
    pair = draw.choice(tree)
    about = pair[1]
    if not isinstance(about, Object) or not all(isinstance(item, list) and len(item) == 2 for item in about):
        return tree
    fields = dict(map(tuple, about))
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    numbers = isinstance(shape, list) and shape and all(type(size) is int for size in shape)
    match draw.randrange(6):
        case 0:
            fields["dtype"] = draw.choice(("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", ""))
        case 1 if numbers:
            fields["shape"] = draw.choice((shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [0, *shape], [-1, *shape[1:]]))
        case 2 if numbers:
            fields["shape"] = [size * draw.choice((1, 2, 2**31, 2**62)) for size in shape]
        case 3 if isinstance(offsets, list) and len(offsets) == 2 and all(type(end) is int for end in offsets):
            start, end = offsets
            fields["data_offsets"] = draw.choice(
                ([start + 1, end], [start, end + 2], [end, start], [0, end - start], [start, start])
            )
        case 4:
            pair[0] = draw.choice(
                (draw.choice(tree)[0], pair[0] + ".weight", pair[0].replace("weight", "bias"), "__metadata__")
            )
        case _:
            fields.pop(draw.choice(list(fields)), None)
    pair[1] = Object([list(item) for item in fields.items()])
    return tree


def as_png(draw: Random, data: bytes) -> bytes:
    """A chunk changed, dropped, doubled, moved or made up, its checksum right: what is wrong is found further inside."""
    if draw.random() < 0.3 or not data.startswith(b"\x89PNG"):
        return as_bytes(draw, data)
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = draw.randrange(len(chunks))
    kind, content = chunks[number]
    match draw.randrange(6):
        case 0 | 1:
            chunks[number] = kind, as_bytes(draw, content)
        case 2:
            del chunks[number]
        case 3:
            chunks.insert(draw.randint(0, len(chunks)), chunks[number])
        case 4:
            made_up = draw.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"PLTE", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"eXIf", b"IEND")
            )
            chunks.insert(draw.randint(0, len(chunks)), (made_up, draw.randbytes(draw.randint(0, 40))))
        case _ if len(chunks[0][1]) == 13:
            width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
            sizes = (0, 1, width, height, 2 * width, 4000, 16_000, 50_000, 2**31 - 1, 2**32 - 1)
            rest[draw.randrange(5)] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = b"IHDR", struct.pack(">IIBBBBB", draw.choice(sizes), draw.choice(sizes), *rest)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def as_torch(draw: Random, data: bytes) -> bytes:
    """The archive's pickle or its members changed; or as bytes, the directory at its end more often than chance has it."""
    how = draw.randrange(8)
    if how == 0:
        return as_bytes(draw, data)
    if how == 1:
        tail = draw.randint(22, 400)
        return data[:-tail] + as_bytes(draw, data[-tail:])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = draw.randrange(len(members)) if how < 5 else 0
    name, content = members[number]
    kind = zipfile.ZIP_STORED
    if how == 2:
        members[number] = (
            draw.choice((name.upper(), "../" + name, "/" + name, name + "/", name[8:], "a" * 60_000, members[0][0])),
            content,
        )
    elif how == 3:
        del members[number]
    elif how == 4:
        kind = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED))
        members[number] = name, draw.choice((content[:-1], content + b"\0", b"", content * 2))
    else:
        members[0] = members[0][0], _pickle(draw, members[0][1])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return file.getvalue()


def _pickle(draw: Random, data: bytes) -> bytes:
    """Opcodes and their operands changed."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(data))
        scrap = draw.choice((*OPCODES, draw.randbytes(1)))
        data = data[:at] + scrap + data[at + draw.choice((0, 0, 1, len(scrap))) :]
    return as_bytes(draw, data) if draw.random() < 0.3 else data


OPCODES = (
    *(
        b".",
        b"0",
        b"1",
        b"2",
        b"(",
        b")",
        b"}",
        b"]",
        b"N",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"Q",
        b"u",
        b"s",
        b"b",
        b"a",
    ),
    *(
        b"q\x00",
        b"h\x00",
        b"r\xff\xff\xff\xff",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    ),
    *(b"X\xff\xff\xff\xff", b"X\x00\x00\x00\x00", b"cos\nsystem\n", b"ctorch\nDoubleStorage\n", b"ccollections\nOrderedDict\n"),
    *(
        b"I99\n",
        b"F1.5\n",
        b"S'a'\n",
        b"V\\ud800\n",
        b"L9L\n",
        b"G" + bytes(8),
        b"\x95" + b"\xff" * 8,
        b"\x8c\xff",
        b"\x80\x05",
    ),
)


def any_of(*mutates: Mutate) -> Mutate:
    return lambda draw, data: draw.choice(mutates)(draw, data)


def splice(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = draw.choice(list(others))
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]
