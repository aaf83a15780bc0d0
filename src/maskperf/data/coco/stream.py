"""The lists of a large JSON file, one block of entries after the other, so that memory does not follow the file."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable
from io import BufferedIOBase
from itertools import chain, islice
from typing import Any

import msgspec

BLOCK_BYTES = 1 << 17  # what is made of so much text stays in the processor's own memory
MAX_ENTRY_BYTES = 64 << 20
MAX_VALUE_BYTES = 8 << 20  # of a member of the top level that nobody takes
MAX_TRIES = 8  # positions at which a block may end
SEARCHED_BYTES = 1 << 16  # at the end of a block, for such a position

WHITESPACE = re.compile(rb"[ \t\r\n]*")
KEY = re.compile(rb'[ \t\r\n]*"([^"\\\x00-\x1f]*)"[ \t\r\n]*:[ \t\r\n]*')
BETWEEN_ENTRIES = re.compile(rb"\}[ \t\r\n]*,(?=[ \t\r\n]*\{)")
END_OF_LIST = re.compile(rb"\}[ \t\r\n]*\]")


class NotPlain(Exception):  # noqa: N818 -- no error: the file may be right, but it is not for this reader
    """The file is broken, or of a form that only the reader of whole files understands."""


class ListStream:
    """Reads a JSON object whose large members are lists of objects. Everything read goes into one SHA-256."""

    def __init__(self, file: BufferedIOBase, block_bytes: int = BLOCK_BYTES):
        self._file = file
        self._block_bytes = block_bytes
        self._digest = hashlib.sha256()
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = b""
        self._position = 0  # of the next byte in _text

    def read(self, takers: dict[str, Callable[[bytes], Any]]) -> str:
        """Return the SHA-256 of the file; each taker gets the list of its name, as JSON lists of some entries.

        A taker may be given text that is no JSON, where an entry's end was guessed wrongly: it must raise
        msgspec.DecodeError and forget it. Members without a taker are looked at as JSON and dropped.

        Errors: NotPlain for a file that is no such object, is not strict JSON, or has a list missing or twice; also
        where a taker raises msgspec.ValidationError.
        """
        seen = set()
        self._expect(b"{")
        while True:
            name = self._key()
            if name in seen:
                raise NotPlain
            seen.add(name)
            if name in takers:
                self._expect(b"[")
                self._list(takers[name])
            else:
                self._value()
            if self._byte() != b",":
                break
            self._position += 1
        self._expect(b"}")
        if self._byte() or takers.keys() - seen:
            raise NotPlain
        return self._digest.hexdigest()

    def _more(self) -> bool:
        """Return whether there was more to read; what was used up is dropped."""
        rest = self._text[self._position :]
        block = self._file.read(max(self._block_bytes, len(rest)))  # doubles where one entry needs it
        self._digest.update(block)
        if not block.isascii() or self._utf8.getstate()[0]:
            try:
                self._utf8.decode(block)
            except UnicodeDecodeError as error:
                raise NotPlain from error
        self._text = rest + block
        self._position = 0
        return bool(block)

    def _byte(self) -> bytes:
        """Return the next byte that is no white space, without moving past it; nothing at the end of the file."""
        while True:
            self._position = WHITESPACE.match(self._text, self._position).end()
            if self._position < len(self._text) or not self._more():
                return self._text[self._position : self._position + 1]

    def _expect(self, wanted: bytes) -> None:
        if self._byte() != wanted:
            raise NotPlain
        self._position += 1

    def _grow(self, max_bytes: int) -> None:
        """Read on, where what is at the position is longer than the text."""
        if len(self._text) - self._position > max_bytes or not self._more():
            raise NotPlain

    def _key(self) -> str:
        self._byte()
        while (match := KEY.match(self._text, self._position)) is None or match.end() == len(self._text):
            self._grow(MAX_VALUE_BYTES)
        self._position = match.end()
        return match[1].decode("utf-8")

    def _value(self) -> None:
        """Move past a member that nobody takes."""
        while True:
            text = codecs.getincrementaldecoder("utf-8")().decode(self._text[self._position :])
            try:
                _, length = json.JSONDecoder().raw_decode(text)
            except (ValueError, RecursionError):
                length = len(text)
            if length < len(text):  # a number that ends with the block may go on in the next
                break
            self._grow(MAX_VALUE_BYTES)
        value = text[:length].encode()
        if not _accepts(msgspec.json.decode, value):  # Python's reader takes NaN
            raise NotPlain
        self._position += len(value)

    def _list(self, take: Callable[[bytes], Any]) -> None:
        """Give the list whose first entry is next to `take`, in parts; move past its end."""
        if self._byte() == b"]":
            take(b"[]")
            self._position += 1
            return
        follower = b""
        while follower != b"]":
            if len(self._text) - self._position < self._block_bytes:
                self._more()
            while (follower := self._take_part(take)) is None:
                self._grow(MAX_ENTRY_BYTES)
            self._expect(follower)

    def _take_part(self, take: Callable[[bytes], Any]) -> bytes | None:
        """Give entries to `take`; return the byte that follows them, or None where no entry's end was found.

        An end is right if and only if the text up to it is whole entries; being decoded without complaint is proof.
        """
        start = max(self._position, len(self._text) - SEARCHED_BYTES)
        between = [(match.start() + 1, b",") for match in BETWEEN_ENTRIES.finditer(self._text, start)]
        between = between[: -MAX_TRIES - 1 : -1]  # the last ones, backwards
        closings = islice(END_OF_LIST.finditer(self._text, self._position), MAX_TRIES)
        closing = ((match.start() + 1, b"]") for match in closings)
        for end, follower in chain(between[:1], closing, between[1:]):
            if _accepts(take, b"[%b]" % self._text[self._position : end]):
                self._position = end
                return follower
        return None


def _accepts(take: Callable[[bytes], Any], text: bytes) -> bool:
    try:
        take(text)
    except msgspec.ValidationError as error:  # whole JSON of other types than the taker wants
        raise NotPlain from error
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
