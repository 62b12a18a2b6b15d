"""Images in the formats that Pillow reads and does not write, made by hand; all are 32 × 32, but for Photo CD's."""

import struct

from tests.source_layouts import encode, photo


def iptc(data: bytes, compression: int) -> bytes:
    """Wrap pixels (1), or an image of which Pillow tells the format anew (5), as IPTC does."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\x20", (3, 30): b"\0\x20", (3, 120): bytes([0, compression])}
    head = b"".join(struct.pack(">BBBH", 0x1C, *tag, len(value)) + value for tag, value in fields.items())
    return head + struct.pack(">4BBI", 0x1C, 8, 10, 132, 0, len(data)) + data + bytes(5)


UNREADABLE = {
    "IPTC": iptc(photo(3, (32, 32)).convert("L").tobytes(), 1),
    "BUFR": b"BUFR" + bytes(60),
    "GRIB": b"GRIB\0\0\0\1" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "MPEG": b"\0\0\1\xb3" + bytes([32 >> 4, 0, 32]) + bytes(60),
    "WMF": struct.pack("<IH4hHI", 0x9AC6CDD7, 0, 0, 0, 32, 32, 72, 0) + b"\0\0\1\0\t\0" + bytes(60),
}
"""What Pillow knows by name and cannot decode, so that its code looks at the header alone; and IPTC, refused here."""


def rare_images() -> dict[str, bytes]:
    """Encode a small picture in every such format."""
    picture = photo(3, (32, 32))
    rgb, grey = picture.tobytes(), picture.convert("L").tobytes()
    pixels = struct.pack("<2i", 32, 32)
    pcx = encode(picture, "PCX")
    bitmap = bytearray(encode(picture, "DIB"))
    struct.pack_into("<i", bitmap, 8, 64)  # a cursor's mask counts as height
    area = [0, 4, 0, 0, 0, 0, 0, 0, 32, 32, 1, 0, 0, 1, *[0] * 18, 0, 256, *[0] * 30]
    colours = "".join(f'"{chr(65 + i)} c #{i * 0x0F0301:06x}",\n' for i in range(16))
    rows = ",\n".join('"' + "".join(chr(65 + (x + y) % 16) for x in range(32)) + '"' for y in range(32))
    fits = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 32", "NAXIS2  = 32", "END"]
    fits_header = "".join(card.ljust(80) for card in fits).ljust(2880).encode()
    layer_free_psd = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 32, 32, 8, 3) + bytes(12)
    frame = struct.pack("<IHH8x", 16 + 6 + 1024, 0xF1FA, 1) + struct.pack("<IH", 6 + 1024, 16) + grey
    fli = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF12, 1, 32, 32, 8, 3, 70).ljust(128, b"\0") + frame
    return {
        "CUR": b"\0\0\2\0\1\0" + struct.pack("<4B2HII", 32, 32, 0, 0, 0, 0, len(bitmap), 22) + bitmap + bytes(128),
        "DCX": struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx,
        "FITS": fits_header + grey.ljust(2880, b"\0") + bytes(80),
        "FLI": fli,
        "FTEX": b"FTEX" + struct.pack("<i", 1) + pixels + struct.pack("<6i", 1, 1, 1, 32, len(rgb), 0)[:-4] + rgb,
        "GBR": struct.pack(">5I4sI", 32, 2, 32, 32, 1, b"GIMP", 10) + b"dot\0" + grey,
        "IMT": b"width 32\nheight 32\npixel n8\n\x0c" + grey,
        "MCIDAS": struct.pack(">64i", *area) + grey,
        "PCD": bytes(2048) + b"PCD_" + bytes(96 * 2048 - 2052) + (bytes(range(256)) * 2304)[: 768 * 512 * 3 // 2],
        "PIXAR": b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<HH4xHH", 32, 32, 14, 2).ljust(608, b"\0") + rgb,
        "PSD": layer_free_psd + struct.pack(">H", 0) + b"".join(picture.getchannel(i).tobytes() for i in range(3)),
        "SUN": struct.pack(">8I", 0x59A66A95, 32, 32, 24, len(rgb), 1, 0, 0) + rgb,
        "XPM": f'/* XPM */\nstatic char *a[] = {{\n"32 32 16 1",\n{colours}/* pixels */\n{rows}\n}};\n'.encode(),
        "XVTHUMB": b"P7 332\n#IMGINFO:32x32\n#END_OF_COMMENTS\n32 32 255\n" + grey,
    }
