"""A process that decodes JPEG frames with GDCM, for `medseg.dicom.gdcm_process`; imports nothing of medseg.

request   struct REQUEST, then the frame         reply   struct LENGTH, then the pixels, little endian
"""

from __future__ import annotations

import struct
import sys

#: rows, columns, bits allocated, bits stored, signed, length of the transfer syntax UID, length of the frame
REQUEST = struct.Struct("<HHHHHHQ")
LENGTH = struct.Struct("<Q")


def _decode(syntax: str, rows: int, columns: int, allocated: int, stored: int, signed: int, frame: bytes) -> bytes:
    import gdcm  # not above: the parent reads this module for its structs

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, signed))
    pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")  # SWIG gives bytes as str
    return pixels


def _serve() -> None:
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        rows, columns, allocated, stored, signed, name, length = REQUEST.unpack(head)
        syntax = requests.read(name).decode()
        pixels = _decode(syntax, rows, columns, allocated, stored, signed, requests.read(length))
        replies.write(LENGTH.pack(len(pixels)))
        replies.write(pixels)
        replies.flush()


if __name__ == "__main__":
    _serve()
