"""The little of AMQP 1.0 that finds the payload of a message, and frames a payload: functions over bytes."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct(">I")


def amqp_payload(entry: bytes) -> bytes:
    """The payload in the AMQP 1.0 sections of an entry; the entry itself if it has no sections.

    Several data sections are joined. An amqp-value section of binary or string type is a payload too. The
    function never raises: an entry whose sections cannot be walked to the end is returned whole.
    """
    if entry[:3] == b"\x00\x53\x75":
        kind = entry[3:4]
        if kind == b"\xa0" and len(entry) > 4 and entry[4] == len(entry) - 5:
            return entry[5:]
        if kind == b"\xb0" and len(entry) > 7 and _LENGTH.unpack_from(entry, 4)[0] == len(entry) - 8:
            return entry[8:]
    if entry[:1] != b"\x00":
        return entry
    try:
        payload = _walk_sections(entry)
    except (IndexError, struct.error):
        payload = None
    return entry if payload is None else payload


_HEADER_SECTION, _DATA, _VALUE, _FOOTER = 0x70, 0x75, 0x77, 0x78
_SECTIONS_BY_SYMBOL = {
    b"amqp:header:list": 0x70,
    b"amqp:delivery-annotations:map": 0x71,
    b"amqp:message-annotations:map": 0x72,
    b"amqp:properties:list": 0x73,
    b"amqp:application-properties:map": 0x74,
    b"amqp:data:binary": 0x75,
    b"amqp:amqp-sequence:list": 0x76,
    b"amqp:amqp-value:*": 0x77,
    b"amqp:footer:map": 0x78,
}
_FIXED_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}


def _walk_sections(entry: bytes) -> bytes | None:
    """The payload of a sequence of sections; None if it has none, or cannot be understood.

    Raises IndexError or struct.error if the entry is cut off.
    """
    data: list[bytes] = []
    value: bytes | None = None
    position = 0
    while position < len(entry):
        if entry[position] != 0:
            return None
        section, at = _descriptor(entry, position + 1)
        if section is None or not _HEADER_SECTION <= section <= _FOOTER:
            return None
        position = _end_of_value(entry, at)
        if section in (_DATA, _VALUE):
            payload = _binary_or_string(entry, at, position)
            if payload is None:
                return None
            if section == _DATA:
                data.append(payload)
            else:
                value = payload
    return b"".join(data) if data else value


def _descriptor(entry: bytes, at: int) -> tuple[int | None, int]:
    """The section code that the descriptor at ``at`` names, and where the section's value begins."""
    kind = entry[at]
    if kind == 0x53:
        return entry[at + 1], at + 2
    end = _end_of_value(entry, at)
    if kind == 0x80:
        return int.from_bytes(entry[at + 1 : end], "big"), end
    if kind == 0xA3:
        return _SECTIONS_BY_SYMBOL.get(entry[at + 2 : end]), end
    return None, end


def _end_of_value(entry: bytes, at: int) -> int:
    """Where the AMQP value at ``at`` ends.

    Raises IndexError or struct.error if the value reaches beyond the entry, or its type does not exist.
    """
    values_left = 1
    while values_left:
        kind = entry[at]
        width = kind >> 4
        at += 1
        if kind == 0:  # described: a descriptor and a value follow
            values_left += 1
            continue
        if width in _FIXED_WIDTHS:
            at += _FIXED_WIDTHS[width]
        elif width in (0xA, 0xC, 0xE):
            at += 1 + entry[at]
        elif width in (0xB, 0xD, 0xF):
            at += 4 + int(_LENGTH.unpack_from(entry, at)[0])
        else:
            raise IndexError("no such type")
        values_left -= 1
    if at > len(entry):
        raise IndexError("cut off")
    return at


def _binary_or_string(entry: bytes, at: int, end: int) -> bytes | None:
    if entry[at] in (0xA0, 0xA1):
        return entry[at + 2 : end]
    if entry[at] in (0xB0, 0xB1):
        return entry[at + 5 : end]
    return None


def amqp_message(body: bytes) -> bytes:
    """Frame a body as an AMQP 1.0 message of one data section."""
    if len(body) < 256:
        return b"\x00\x53\x75\xa0" + bytes((len(body),)) + body
    return b"\x00\x53\x75\xb0" + _LENGTH.pack(len(body)) + body
