"""Requests with mistakes in them: messages of any type, changed at random, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError, Message

_TEXTS = (
    "",
    "\0",
    "..",
    "../../etc/passwd",
    "/",
    "x" * 300,
    "\ud7ff\U0001f600",
    "%s%n",
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "nan",
    "True",
    "INT32",
    "FP16",
    "BYTES",
    "shared_memory_region",
    "classification",
    "sequence_id",
    "priority",
    "timeout",
    "triton_enable_empty_final_response",
    "trace_rate",
    "log_verbose_level",
)
_INTEGERS = {
    Field.CPPTYPE_INT32: (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31)),
    Field.CPPTYPE_INT64: (0, 1, -1, 2, 4, 16, 2**31, 2**60 + 2, 2**63 - 1, -(2**63)),
    Field.CPPTYPE_UINT32: (0, 1, 2, 2**31, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 1, 8, 2**32, 2**63, 2**64 - 1),
}
_REALS = (0.0, -1.5, 1e30, float("nan"), float("inf"))


class Mutator:
    """Changes messages.

    Args:
        seed: of the random numbers.
        words: texts that mean something to who gets the messages, such as names of models.
    """

    def __init__(self, seed: int, words: Sequence[str] = ()) -> None:
        self._random = random.Random(seed)
        self._texts = [*_TEXTS, *words, *words, *words]

    def mutants(self, examples: Sequence[Message], count: int) -> Iterator[Message]:
        """`count` messages, each one of `examples` with one to four changes."""
        for _ in range(count):
            original = self._random.choice(examples)
            mutant = type(original)()
            mutant.CopyFrom(original)
            for _ in range(self._random.randint(1, 4)):
                mutant = self._flipped(mutant) if self._random.random() < 0.15 else self._changed(mutant)
            yield mutant

    def _flipped(self, message: Message) -> Message:
        """The same with some of its bytes changed, if what comes out can be read."""
        data = bytearray(message.SerializeToString())
        if not data:
            return message
        for _ in range(self._random.randint(1, 3)):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        changed = type(message)()
        try:
            changed.ParseFromString(bytes(data))
        except DecodeError:
            return message
        return changed

    def _changed(self, message: Message) -> Message:
        fields: list[Any] = [*message.DESCRIPTOR.fields]
        if not fields:
            return message
        field = self._random.choice(fields)
        value: Any = getattr(message, field.name)
        action = self._random.random()
        if action < 0.12:
            message.ClearField(field.name)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._change_map(value, field)
        elif field.is_repeated:
            self._change_list(value, field)
        elif field.message_type is not None:
            self._changed(value)
        else:
            setattr(message, field.name, self._value(field))
        return message

    def _change_map(self, value: Any, field: Any) -> None:
        key, item = field.message_type.fields
        name = self._random.choice([*value]) if value and self._random.random() < 0.6 else self._value(key)
        if self._random.random() < 0.15:
            value.pop(name, None)
        elif item.message_type is not None:
            self._changed(value[name])
        else:
            value[name] = self._value(item)

    def _change_list(self, value: Any, field: Any) -> None:
        action = self._random.random()
        if value and action < 0.2:
            del value[self._random.randrange(len(value))]
        elif value and action < 0.35:
            value.extend([value[self._random.randrange(len(value))]] * self._random.choice((1, 2, 300)))
        elif field.message_type is not None:
            self._changed(self._random.choice(value) if value and action < 0.85 else value.add())
        elif value and action < 0.8:
            value[self._random.randrange(len(value))] = self._value(field)
        else:
            value.append(self._value(field))

    def _value(self, field: Any) -> Any:
        kind = field.cpp_type
        if kind == Field.CPPTYPE_STRING:
            text = self._random.choice(self._texts)
            if field.type != Field.TYPE_BYTES:
                return text
            return self._random.choice((text.encode(), self._random.randbytes(self._random.choice((1, 16, 32, 64)))))
        if kind in _INTEGERS:
            return self._random.choice(_INTEGERS[kind])
        if kind == Field.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if kind == Field.CPPTYPE_ENUM:
            return self._random.choice([value.number for value in field.enum_type.values])
        return self._random.choice(_REALS)
