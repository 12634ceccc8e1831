"""The size of an image from its header, before a decoder is trusted with the file.

A header of a few bytes can ask for any amount of memory. These parsers read it as the decoders do,
for the five formats that are read here, and allocate nothing.
"""

import os
import struct
import zlib
from typing import BinaryIO

import numpy as np

from utils.errors import UserError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def header_size(file: BinaryIO) -> tuple[int, int]:
    """(H, W) of the PNG, JPEG, BMP, TIFF or WebP in `file`, of several pages or frames the first.

    ValueError for anything else; UserError, without the file's name, for a TIFF of wider pixels
    than 16 bits a channel.
    """
    try:
        return _header_size(file)
    except (struct.error, KeyError, OverflowError, OSError) as error:  # short, or a wild offset
        raise ValueError("damaged header") from error


def _header_size(file: BinaryIO) -> tuple[int, int]:
    head = file.read(32)
    if head.startswith(PNG_SIGNATURE) and head[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", head, 16)
    elif head.startswith(b"\xff\xd8"):
        height, width = _jpeg_size(file)
    elif head.startswith(b"BM"):
        (old,) = struct.unpack_from("<I", head, 14)
        width, height = struct.unpack_from("<HH" if old == 12 else "<ii", head, 18)
        height = abs(height)  # negative: the rows come from the top
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        height, width = _tiff_size(file)
    elif head.startswith(b"RIFF") and head[8:15] == b"WEBPVP8":
        width, height = _webp_size(head)
    else:
        raise ValueError("unknown format")
    return height, max(width, 0)


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(2)
    for _ in range(2**16):  # segments, and stray bytes between them, which decoders skip
        if (byte := file.read(1)) != b"\xff":
            if not byte:
                break
            continue
        while (marker := file.read(1)) == b"\xff":
            pass
        kind = marker[0] if marker else 0xD9
        if kind == 0xD9:
            break
        if kind in (0x00, 0x01, *range(0xD0, 0xD9)):  # no segment of any length
            continue
        length, _, height, width = struct.unpack(">HBHH", file.read(7).ljust(7, b"\0"))
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of frame
            return height, width
        if length < 2:  # it counts its own two bytes
            break
        file.seek(length - 7, os.SEEK_CUR)
    raise ValueError("no frame")


def _tiff_size(file: BinaryIO) -> tuple[int, int]:
    """As its orientation turns it. BigTIFF differs in the widths of its fields."""
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"

    def read(fields: str) -> tuple:
        return struct.unpack(order + fields, file.read(struct.calcsize(order + fields)))

    big = read("H") == (43,)
    offset, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    file.seek(8 if big else 4)
    file.seek(*read(offset))
    found: dict[int, tuple[int, int, bytes]] = {}
    for _ in range(min(*read(count), 2**16)):
        tag, *rest = read(entry)
        found.setdefault(tag, rest)  # of a tag that comes twice decoders take the first

    def first_value(tag: int, default: int) -> int:
        kind, n, value = found.get(tag, (3, 1, struct.pack(order + "Hxx", default)))
        bits = {3: "H", 4: "I"}[kind]
        if n * struct.calcsize(bits) > len(value):  # then it is where they are
            file.seek(*struct.unpack(order + offset, value))
            return read(bits)[0]
        return struct.unpack_from(order + bits, value)[0]

    if (bits := first_value(258, 1)) > 16:
        raise UserError(f"expected 8- or 16-bit pixels, found {bits} bits; convert it to PNG")
    width, height = first_value(256, 0), first_value(257, 0)
    return (width, height) if first_value(274, 1) >= 5 else (height, width)


def _webp_size(head: bytes) -> tuple[int, int]:
    if head[15:16] == b"X":
        return tuple(1 + int.from_bytes(head[i : i + 3], "little") for i in (24, 27))
    if head[15:16] == b"L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(side & 0x3FFF for side in struct.unpack_from("<HH", head, 26))


def still_png(data: np.ndarray) -> np.ndarray:
    """The bytes of a file as they are, but of an animated PNG the still image alone.

    OpenCV (5.0.0) crashes on damaged animations. ValueError for a PNG with a wrong checksum, of
    which libpng would print lines without a name.
    """
    view = memoryview(data)
    if bytes(view[:8]) != PNG_SIGNATURE:
        return data
    position, still, animated = 8, [view[:8]], False
    while position + 12 <= len(view):
        start, kind = position, bytes(view[position + 4 : position + 8])
        end = position + 8 + int.from_bytes(view[position : position + 4], "big")
        position = end + 4
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end:position], "big"):
            break
        animated |= kind in (b"acTL", b"fcTL", b"fdAT")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            still.append(view[start:position])
        if kind == b"IEND":
            return np.frombuffer(b"".join(still), np.uint8) if animated else data
    raise ValueError("damaged or truncated")
