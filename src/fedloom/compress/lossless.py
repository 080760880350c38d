"""The last stage: the same bytes, shorter. zstd: Y. Collet, M. Kucherawy, RFC 8878, 2021.

The stored bytes are a plain zstd frame that names its length. Another version of the library may write another frame for
the same bytes; every one reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from fedloom.compress.options import whole
from fedloom.errors import DataError, MissingDependency
from fedloom.layout import Layout


@dataclass(frozen=True)
class Zstd:
    """A zstd frame.

    Attributes:
        level: -7 (fast) to 19 (small).
    """

    level: int = 3

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"zstd:{self.level}"

    def pack(self, data: bytes) -> bytes:
        """Return the frame of these bytes."""
        return bytes(_library().ZstdCompressor(level=self.level).compress(data))

    def unpack(self, data: memoryview, most: int) -> bytes:
        """Return the bytes of a frame, of which there must be at most ``most``.

        Raises:
            DataError: The frame is damaged, says nothing about its length, or is longer.
        """
        zstd = _library()
        try:
            size = zstd.frame_content_size(data)
            if not 0 <= size <= most:
                said = "no length" if size < 0 else f"{size} bytes"
                raise DataError(f"an encoded update is damaged: its zstd frame says {said}, at most {most} are right")
            return bytes(zstd.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False))
        except zstd.ZstdError as error:
            raise DataError(f"an encoded update is damaged: zstd says '{error}'") from error


def _library() -> ModuleType:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingDependency.of("zstandard", "compression", "compressing updates with zstd") from error
    return zstandard


def make(values: Mapping[str, str], layout: Layout | None) -> Zstd:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    _library()
    return Zstd(whole("zstd", "level", values["level"], -7, 19))
