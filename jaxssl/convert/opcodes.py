"""A pickle's opcodes, read before any is run: what would fill memory or never end is refused by its numbers.

An unpickler believes what a pickle claims: 127 bytes may ask for a table of half a billion entries, sixty tuples of
twice the tuple before have 10^18 leaves once somebody hashes or prints them, and a tuple in a tuple, a million deep,
overflows the stack. So each value's depth and size, all its leaves written out, are counted here on shadows of them.
"""

import pickletools
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import IO, Any

OPCODES = 2_000_000  # the largest checkpoint known here has a hundredth
DEPTH = 200  # of containers in containers; configurations of the field's tools have some 10
NUMBER = 64  # bytes of an integer
EXPANSION = 64  # all leaves written out, relative to the pickle's bytes
SPARE = 1_000_000  # what a small pickle may expand to in any case
MARK = pickletools.markobject
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# These change the value below what they take: whoever holds it already, holds more.
CHANGES = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})  # each may copy all that it is given


@dataclass(eq=False)
class _Shadow:
    """A value: its own length, what it holds, how deep it goes, and how large it is with every leaf written out."""

    own: int = 1
    parts: list["_Shadow"] = field(default_factory=list)
    depth: int = 0
    size: int = 1

    def take(self, parts: list["_Shadow"]) -> None:
        """Hold these parts too."""
        self.parts += parts
        self.depth = max((self.depth, *(part.depth + 1 for part in parts)))
        self.size += sum(part.size for part in parts)


@dataclass
class _Machine:
    """The unpickler's stack and memo, of shadows; None is a mark."""

    stack: list[_Shadow | None] = field(default_factory=list)
    memo: dict[int, _Shadow] = field(default_factory=dict)
    copied: int = 0

    def run(self, opcode: Any, argument: Any) -> _Shadow | None:
        """Carry out one opcode on the shadows; return the value on top after it."""
        if opcode.name in PUTS:
            self.memo[len(self.memo) if argument is None else int(argument)] = self._top()
        elif opcode.name in GETS:
            if int(argument) not in self.memo:
                raise UnpicklingError(f"it asks for value {argument}, which it has not kept")
            self.stack.append(self.memo[int(argument)])
        elif opcode.name == "MARK":
            self.stack.append(None)
        elif opcode.name == "POP":
            self._pop()
        elif opcode.name == "DUP":
            self.stack.append(self._top())
        elif opcode.name == "POP_MARK":
            self._slice()
        else:
            self._make(opcode, argument)
        return self.stack[-1] if self.stack else None

    def result(self) -> _Shadow:
        """Return the value that the pickle ends with."""
        return self._top()

    def _make(self, opcode: Any, argument: Any) -> None:
        before = opcode.stack_before
        parts = self._slice() if MARK in before else []
        alone = before.index(MARK) if MARK in before else len(before)
        parts = [self._top_of(self._pop()) for _ in range(alone)][::-1] + parts
        if not opcode.stack_after:
            return
        if opcode.name in CHANGES:
            made, parts = parts[0], parts[1:]
        else:
            made = _Shadow(own := 1 + _length(argument), size=own)
        made.take(parts)
        if opcode.name in CALLS:
            self.copied += sum(each.own + len(each.parts) for part in parts for each in (part, *part.parts))
        self.stack.append(made)

    def _slice(self) -> list[_Shadow]:
        parts = []
        while (part := self._pop()) is not None:
            parts.append(part)
        return parts[::-1]

    def _pop(self) -> _Shadow | None:
        if not self.stack:
            raise UnpicklingError("it takes more values than it has made")
        return self.stack.pop()

    def _top(self) -> _Shadow:
        return self._top_of(self.stack[-1] if self.stack else None)

    def _top_of(self, part: _Shadow | None) -> _Shadow:
        if part is None:
            raise UnpicklingError("a mark stands where a value belongs")
        return part


class _Within:
    """A file that gives no more than it has, however much is asked for."""

    def __init__(self, file: IO[bytes]):
        self.file, self.start = file, file.tell()
        self.end = file.seek(0, 2)
        file.seek(self.start)

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.end - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline(1 << 20)

    def tell(self) -> int:
        return self.file.tell()


def check(file: IO[bytes]) -> None:
    """Read one pickle of a file, to its end, and run nothing; the file stands where it stood.

    Raises:
        UnpicklingError: it is none, or would take memory or time out of proportion to its size.
    """
    source: Any = _Within(file)  # all of a file that genops asks for
    machine, limit = _Machine(), SPARE
    for number, (opcode, argument, _) in enumerate(pickletools.genops(source)):
        read = source.tell() - source.start
        limit = EXPANSION * read + SPARE
        if number > OPCODES:
            raise UnpicklingError(f"it has over {OPCODES} opcodes, and no checkpoint needs so many")
        if opcode.name in PUTS and argument is not None and int(argument) > read:
            raise UnpicklingError(f"value {argument} of at most {read} is to be kept")
        if isinstance(argument, int) and argument.bit_length() > 8 * NUMBER:
            raise UnpicklingError(f"a number of {argument.bit_length()} bits, at most {8 * NUMBER} are read")
        if opcode.name == "STOP":
            break
        top = machine.run(opcode, argument)
        if top is not None and top.depth > DEPTH:
            raise UnpicklingError(f"values are nested over {DEPTH} deep")
        if machine.copied > limit or (top is not None and top.size > limit):
            raise UnpicklingError(f"{read} bytes expand to over {limit}")
    _settle(machine.result(), limit)
    file.seek(source.start)


def _settle(whole: _Shadow, limit: int) -> None:
    """Measure the finished value again: lists and dicts may have grown after others took them."""
    done: set[_Shadow] = set()
    open_, path = [(whole, iter(whole.parts))], {whole}
    while open_:
        shadow, parts = open_[-1]
        part = next((part for part in parts if part not in done and part not in path), None)
        if part is not None:
            path.add(part)
            open_.append((part, iter(part.parts)))
            continue
        # What holds itself, as omegaconf's nodes know their parents, ends where it comes back.
        inner = [part for part in shadow.parts if part in done]
        shadow.depth = max((0, *(part.depth + 1 for part in inner)))
        shadow.size = shadow.own + sum(part.size for part in inner)
        if shadow.depth > DEPTH or shadow.size > limit:
            raise UnpicklingError(
                f"values of depth {shadow.depth} and size {shadow.size}, {DEPTH} and {limit} are read"
            )
        open_.pop()
        path.discard(shadow)
        done.add(shadow)


def _length(argument: Any) -> int:
    return len(argument) if isinstance(argument, (str, bytes, bytearray)) else 0
