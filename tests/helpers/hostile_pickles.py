"""Torch files by hand, opcode by opcode: what an attacker may write and torch.save never would."""

import zipfile
from pathlib import Path


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


SYSTEM, EVAL, IMPORT, GETATTR = name("os", "system"), *(name("builtins", n) for n in ("eval", "__import__", "getattr"))
ORDERED_DICT = call(name("collections", "OrderedDict"))


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    stored: bytes | None = None, offset: bytes = number(0), shape: bytes | None = None, strides: bytes | None = None
) -> bytes:
    """A well-formed tensor of four float32, but for what is given."""
    shape, strides = shape or tuple_of(number(4)), strides or tuple_of(number(1))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, stored or storage(), offset, shape, strides, b"\x89", ORDERED_DICT)


def sized(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    return tensor(None, number(offset), tuple_of(*map(number, shape)), tuple_of(*map(number, strides)))


def state_dict(*items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(items) + b"u."


def one(value: bytes) -> bytes:
    return state_dict(text("a"), value)


def write_torch_file(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/byteorder", "little")


def executing(marker: Path) -> dict[str, bytes]:
    """Pickles that make the file `marker` when Python's own pickle loads them."""
    command, code = text(f"touch {marker}"), text(f"open({str(marker)!r}, 'w')")
    os_module = call(IMPORT, text("os"))
    return {
        "reduce": b"\x80\x02" + call(SYSTEM, command) + b".",
        "reduce inside a dict": one(call(SYSTEM, command)),
        "reduce as a tensor's shape": one(tensor(shape=call(SYSTEM, command))),
        "reduce as a storage's key": one(tensor(tuple_of(text("storage"), call(SYSTEM, command)) + b"00" + storage()[:-1])),
        "inst": b"(" + command + b"ios\nsystem\n.",
        "obj": b"(" + SYSTEM.replace(b"os\nsystem", b"subprocess\nPopen") + b"](" + text("touch") + text(str(marker)) + b"eo.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "dotted global": b"\x80\x04" + name("os", "path.os.system") + command + b"\x85R.",
        "protocol 0": b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.",
        "eval": b"\x80\x02" + call(EVAL, code) + b".",
        "exec": b"\x80\x02" + call(name("builtins", "exec"), code) + b".",
        "getattr of an import": b"\x80\x02" + call(call(GETATTR, os_module, text("system")), command) + b".",
        "methodcaller": b"\x80\x02" + call(call(name("operator", "methodcaller"), text("system"), command), os_module) + b".",
        "timeit": b"\x80\x02" + call(name("timeit", "timeit"), code, text("pass"), name("time", "time"), number(1)) + b".",
        "getoutput": b"\x80\x02" + call(name("subprocess", "getoutput"), command) + b".",
        "newobj without reduce": b"\x80\x02"
        + name("builtins", "bytes")
        + name("builtins", "map")
        + tuple_of(EVAL, b"]" + code + b"a")
        + b"\x81\x85\x81.",
        "build sets __setstate__": b"\x80\x02" + ORDERED_DICT + b"}" + text("__setstate__") + SYSTEM + b"sb" + command + b"b.",
        "through the memo": b"\x80\x02" + SYSTEM + b"q\x050h\x05" + command + b"\x85R.",
        "dup and pop": b"\x80\x02" + SYSTEM + b"2" + command + b"\x85R0.",
        "after a good dict": state_dict(text("a"), b"K\x01")[:-1] + call(SYSTEM, command) + b"0.",
        "before a good dict": b"\x80\x02" + call(SYSTEM, command) + b"0}.",
    }


def lying() -> dict[str, bytes]:
    """Pickles that execute nothing but are not what torch.save would have written; the storage has 16 bytes."""
    deep, laughs = b"\x85" * 100_000, b"h\x00h\x00\x86q\x00" * 200
    return {
        "nothing": b"",
        "no stop": state_dict()[:-1],
        "cut": one(tensor())[:-20],
        "unknown opcode": b"\x80\x02\xff.",
        "empty stack": b"\x80\x02R.",
        "no mark": b"\x80\x02}u.",
        "no such memo": b"\x80\x02h\x07.",
        "not a dict": b"\x80\x02" + tensor() + b".",
        "a number among tensors": one(number(3)),
        "a dict in a dict": one(b"}"),
        "key not text": state_dict(number(1), tensor()),
        "key twice": state_dict(text("a"), tensor(), text("a"), tensor()),
        "odd items": state_dict(text("a")),
        "setitem on a tuple": b"\x80\x02)" + text("a") + tensor() + b"s.",
        "setitem on a list": b"\x80\x02]" + number(0) + tensor() + b"s.",
        "setitem on a tensor": b"\x80\x02" + tensor() + text("a") + tensor() + b"s.",
        "setitem on a storage": b"\x80\x02" + storage() + number(0) + number(1) + b"s.",
        "setitems on a name": b"\x80\x02" + name("torch", "FloatStorage") + b"(" + text("a") + tensor() + b"u.",
        "build on a tensor": one(tensor() + b"}b"),
        "append to a tensor": one(tensor() + number(1) + b"a"),
        "persistent id that is text": one(text("storage") + b"Q"),
        "name from the list, with more": b"\x80\x02" + name("collections", "OrderedDict.fromkeys") + b".",
        "storage class called": one(call(name("torch", "FloatStorage"), number(4))),
        "rebuild called with a dict": one(call(name("torch._utils", "_rebuild_tensor_v2"), ORDERED_DICT)),
        "parameter of no tensor": one(call(name("torch._utils", "_rebuild_parameter"), number(1), b"\x88", ORDERED_DICT)),
        "another rebuild": one(call(name("torch._utils", "_rebuild_tensor_v3"), storage())),
        "complex storage": one(tensor(storage("ComplexFloatStorage"))),
        "storage larger than its file": one(tensor(storage(count=1 << 40), shape=tuple_of(number(1 << 40)))),
        "storage smaller than its file": one(tensor(storage(count=3), shape=tuple_of(number(3)))),
        "storage of a wider type": one(tensor(storage("DoubleStorage"))),
        "storage of a negative size": one(tensor(storage(count=-4))),
        "no such storage": one(tensor(storage(key="7"))),
        "storage outside": one(tensor(storage(key="../data.pkl"))),
        "more than the storage": one(sized((5,), (1,))),
        "offset too far": one(sized((4,), (1,), 1)),
        "offset past the end of an empty view": one(sized((0,), (1,), 5)),
        "negative offset": one(sized((4,), (1,), -1)),
        "negative size": one(sized((-4,), (1,))),
        "two negative sizes": one(sized((-2, -2), (2, 1))),
        "negative stride": one(sized((4,), (-1,), 3)),
        "stride too long": one(sized((2,), (4,))),
        "huge stride": one(sized((2,), (1 << 62,))),
        "stride zero": one(sized((1 << 40,), (0,))),
        "overlapping rows": one(sized((3, 3), (0, 1))),
        "huge shape": one(sized((1 << 70, 1 << 70), (1 << 70, 1))),
        "huge empty shape": one(sized((0, 1 << 70), (1, 1))),
        "seventy dimensions": one(sized((1,) * 70, (1,) * 70)),
        "fewer strides than sizes": one(sized((2, 2), (1,))),
        "size that is text": one(tensor(shape=tuple_of(text("4")))),
        "shape that is a number": one(tensor(shape=number(4))),
        "offset that is nothing": one(tensor(offset=b"N")),
        "text longer than the file": b"\x80\x02X\xff\xff\xff\xff.",
        "number of five thousand digits": b"I" + b"9" * 5000 + b"\n.",
        "very deep tuple": b"\x80\x02)" + deep + b".",
        "very deep tuple as a key": state_dict(b")" + deep, tensor()),
        "tuples that double": one(b")q\x00" + laughs),
    }
