"""Reads the pickle in a torch file without executing it.

pickletools splits it into opcodes. Only those are supported that `torch.save` writes for a flat dict of tensors (pickle
protocol 2), and only the names in FUNCTIONS and STORAGES. Nothing is imported: names stay names, and a call of one becomes
a description of a tensor. Deny-lists of dangerous names have failed again and again
(CVE-2025-1716, CVE-2025-10155, CVE-2026-56315); torch's own restricted unpickler could be exploited by
setting items on something other than a dict, and by declaring a storage larger than it is (CVE-2026-24747).
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DICT, TENSOR, PARAMETER = "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
FUNCTIONS = {DICT, TENSOR, PARAMETER}
STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}


@dataclass(frozen=True)
class Storage:
    """A storage: `count` elements in the archive's member data/`key`."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor as a view of a storage.

    Offset, shape and strides (in elements) are the file's claims, not yet checked.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """An allowed name, in place of the function or class that pickle would import."""

    name: str


_MARK = object()
# More than any state dict needs: LLaVA-7B's pickle has 20 thousand opcodes; a tensor's arguments are a tuple of tuples.
MOST_OPCODES, WIDEST, DEEPEST = 300_000, 64, 2


def read_state_dict(data: bytes) -> dict[str, View]:
    """The tensors of a pickled state dict.

    Raises `ValueError`, naming the cause, for anything else.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument) in enumerate(_opcodes(data)):
            if count == MOST_OPCODES:
                raise ValueError(f"its pickle has more than {MOST_OPCODES} opcodes, the limit")
            machine.step(opcode, argument)
        value = machine.stack.pop()
    except (IndexError, KeyError):  # an opcode needs more than the stack or memo has
        raise ValueError("its pickle is damaged") from None
    if not isinstance(value, dict) or not all(isinstance(view, View) for view in value.values()):
        raise ValueError("it should hold one flat dict of tensors, as model.state_dict() is")
    return value


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({error})") from None


class _Machine:
    """Pickle's stack machine: a stack and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Execute one opcode on descriptions.

        Raises `ValueError` for an opcode or operand that no state dict has, IndexError or KeyError if an operand is missing.
        """
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                push(argument)
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "GLOBAL":
                push(_allowed(argument))
            case "EMPTY_DICT":
                push({})
            case "EMPTY_TUPLE":
                push(())
            case "MARK":
                push(_MARK)
            case "TUPLE":
                push(_tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(_tuple([pop() for _ in range(int(opcode[-1]))][::-1]))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "BINPERSID":
                push(_storage(pop()))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_described(function, arguments))
            case "SETITEM":
                value, key = pop(), pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "BUILD":  # sets a state dict's version numbers (_metadata), which are dropped
                pop()
                _as_dict(self.stack[-1])
            case _:
                raise ValueError(f"its pickle uses the opcode {opcode}, which no state dict needs")

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _set_items(self, items: list[Any]) -> None:
        target = _as_dict(self.stack[-1])
        if len(items) % 2:
            raise ValueError("its pickle is damaged (a key without a value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                raise ValueError("a key of its dict is not text or is a duplicate")
            target[key] = value


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    """A tuple; deep or wide ones are refused early, since they are slow to build, compare and free."""
    if len(items) > WIDEST or _depth(items) >= DEEPEST:
        raise ValueError(f"its pickle has a tuple of more than {WIDEST} items or {DEEPEST} levels, which no tensor needs")
    return tuple(items)


def _depth(items: list[Any] | tuple[Any, ...]) -> int:
    """Levels of nested tuples; cheap, since `_tuple` bounds each of them."""
    return max((1 + _depth(item) for item in items if isinstance(item, tuple)), default=0)


def _allowed(name: str) -> _Name:
    if name not in FUNCTIONS and name not in STORAGES:
        raise ValueError(f"its pickle names {name.replace(' ', '.')[:80]!r}, which no state dict needs")
    return _Name(name)


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its pickle sets items or state on something that is not a dict ({type(value).__name__})")
    return value


def _storage(reference: Any) -> Storage:
    match reference:
        case ("storage", _Name(kind), str(key), str(), int(count)) if kind in STORAGES:
            return Storage(STORAGES[kind], key, count)
    raise ValueError("its pickle refers to something that is not a storage of a known type")


def _described(function: Any, arguments: Any) -> dict[str, Any] | View:
    """A description of what the call would return."""
    match function, arguments:
        case _Name(name), () if name == DICT:
            return {}
        case _Name(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict()) if name == TENSOR:
            if all(isinstance(size, int) for size in (*shape, *strides)):
                return View(storage, offset, shape, strides)
        case _Name(name), (View() as view, bool(), dict()) if name == PARAMETER:
            return view
    raise ValueError("its pickle makes a call that torch does not use for a dict, tensor or parameter")
