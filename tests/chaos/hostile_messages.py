"""Strategies for messages of the wire that are valid but for a few fields, and for bytes that are no message."""

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

MessageT = TypeVar("MessageT", bound=Message)
_WORDS = [
    "",
    " ",
    "a",
    "é",
    "\0",
    "a\nb",
    "tandem",
    "#1",
    "~1",
    "x" * 300,
    "y" * 70_000,
    "127.0.0.1:1",
    "nobody:1",
    ":",
    "[::]",
]
_INTEGERS = {
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from([0, 1, 2, 95, 96, 511, 512, 2**31 - 1, 2**31, 2**32 - 1])
    | st.integers(0, 200),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from([0, 1, 2**31, 2**53, 2**63, 2**64 - 1]) | st.integers(0, 200),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([-1, 0, 1, 2, 3, 99, 2**31 - 1]),
}
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    **_INTEGERS,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats() | st.sampled_from([-0.0, 0.5, 1.0, 1e-300, 1e300, -1.0, 3.0]),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_MAX_ITEMS = 24


@st.composite
def mutated(draw: st.DrawFn, valid: MessageT) -> MessageT:
    """``valid`` with one to four fields, at any depth, changed or cleared."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(1, 4))):
        _mutate(draw, message)
    return message


def garbage(valid: Message) -> st.SearchStrategy[bytes]:
    """Bytes: random ones, or those of ``valid`` with some cut out, put in or changed."""
    return st.binary(max_size=200) | damaged(valid.SerializeToString())


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with some bytes cut out, put in or changed, at up to four places."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(damaged)))
        end = draw(st.integers(start, min(len(damaged), start + 8)))
        damaged[start:end] = draw(st.binary(max_size=8))
    return bytes(damaged)


def _mutate(draw: st.DrawFn, message: Message) -> None:
    fields: Any = message.DESCRIPTOR.fields  # the classes of protobuf's two implementations differ in the type stubs
    field: FieldDescriptor = draw(st.sampled_from(list(fields)))
    if draw(st.integers(0, 9)) == 0:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        _fill_map(draw, getattr(message, field.name), field)
    elif field.is_repeated:
        _fill_list(draw, getattr(message, field.name), field)
    elif field.message_type is not None:
        _mutate(draw, getattr(message, field.name))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _fill_map(draw: st.DrawFn, values: Any, field: FieldDescriptor) -> None:
    assert field.message_type is not None
    entry = field.message_type.fields_by_name
    for _ in range(draw(st.integers(1, _MAX_ITEMS))):
        values[draw(_scalar(entry["key"]))] = draw(_scalar(entry["value"]))


def _fill_list(draw: st.DrawFn, values: Any, field: FieldDescriptor) -> None:
    if field.message_type is not None:
        for _ in range(draw(st.integers(1, 3))):
            _mutate(draw, values[draw(st.integers(0, len(values) - 1))] if values else values.add())
        return
    items = draw(st.lists(_scalar(field), max_size=_MAX_ITEMS))
    start = draw(st.integers(0, len(values)))
    end = draw(st.integers(start, len(values)))
    kept = [*values[:start], *items, *values[end:]]
    del values[:]
    values.extend(kept * draw(st.sampled_from([1, 1, 1, 50])))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _TEXT
    return _SCALARS[field.cpp_type]


_TEXT = st.sampled_from(_WORDS) | st.text(max_size=40)
_BYTES = st.binary(max_size=64)
