"""The lists of a large JSON file, one block of entries after the other, so that memory does not follow the file."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable
from io import BufferedIOBase
from itertools import islice
from typing import Any

import msgspec

BLOCK_BYTES = 1 << 17  # what is made of so much text stays in the processor's own memory
MAX_ENTRY_BYTES = 64 << 20
MAX_VALUE_BYTES = 8 << 20  # of a member of the top level that nobody takes
MAX_TRIES = 8  # places where a block may end
SEARCHED_BYTES = 1 << 16  # at the end of a block, for such a place

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
        self._place = 0  # of the next byte in _text

    def read(self, takers: dict[str, Callable[[bytes], None]]) -> str:
        """Return the SHA-256 of the file; each taker was given the list of its name, as JSON lists of some entries.

        What a taker gets is meant to be whole JSON, and taken together to hold the entries of the file's list. Where
        it is not, the taker must raise msgspec.DecodeError and forget it; the next attempt is then another one.
        Members without a taker are looked at as JSON and dropped.

        Errors: NotPlain for a file that is no such object, is not strict JSON, or has a list missing or twice.
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
            self._place += 1
        self._expect(b"}")
        if self._byte() or takers.keys() - seen:
            raise NotPlain
        return self._digest.hexdigest()

    def _more(self) -> bool:
        """Return whether there was more to read; what was used up is dropped."""
        rest = self._text[self._place :]
        block = self._file.read(max(self._block_bytes, len(rest)))  # doubles where one entry needs it
        self._digest.update(block)
        if not block.isascii() or self._utf8.getstate()[0]:
            try:
                self._utf8.decode(block)
            except UnicodeDecodeError as error:
                raise NotPlain from error
        self._text = rest + block
        self._place = 0
        return bool(block)

    def _byte(self) -> bytes:
        """Return the next byte that is no white space, without moving past it; nothing at the end of the file."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def _expect(self, wanted: bytes) -> None:
        if self._byte() != wanted:
            raise NotPlain
        self._place += 1

    def _key(self) -> str:
        self._byte()
        while (match := KEY.match(self._text, self._place)) is None or match.end() == len(self._text):
            if len(self._text) - self._place > MAX_VALUE_BYTES or not self._more():
                raise NotPlain
        self._place = match.end()
        return match[1].decode("utf-8")

    def _value(self) -> None:
        """Move past a member that nobody takes."""
        while True:
            text = codecs.getincrementaldecoder("utf-8")().decode(self._text[self._place :])
            try:
                _, length = json.JSONDecoder().raw_decode(text)
            except (ValueError, RecursionError):
                length = len(text)
            if length < len(text):  # a number that ends with the block may go on in the next
                break
            if len(text) > MAX_VALUE_BYTES or not self._more():
                raise NotPlain
        value = text[:length].encode()
        if not _accepts(msgspec.json.decode, value):  # Python's reader takes NaN
            raise NotPlain
        self._place += len(value)

    def _list(self, take: Callable[[bytes], Any]) -> None:
        """Give the list whose first entry is next to `take`, in parts; moves past its end."""
        if self._byte() == b"]":
            self._place += 1
            take(b"[]")
            return
        while not self._part(take):
            pass

    def _part(self, take: Callable[[bytes], Any]) -> bool:
        """Return whether the list has ended, after `take` was given the entries up to some place.

        A place is right if and only if the text up to it is whole entries; being decoded without complaint is proof.
        """
        while True:
            if len(self._text) - self._place < self._block_bytes:
                self._more()
            if (is_end := self._take_some(take)) is not None:
                return is_end
            if len(self._text) - self._place > MAX_ENTRY_BYTES or not self._more():  # one entry larger than a block
                raise NotPlain

    def _take_some(self, take: Callable[[bytes], Any]) -> bool | None:
        """Return whether the list has ended; None where nothing could be taken of what was read so far."""
        start = max(self._place, len(self._text) - SEARCHED_BYTES)
        ends = [match.start() + 1 for match in BETWEEN_ENTRIES.finditer(self._text, start)][: -MAX_TRIES - 1 : -1]
        if ends and self._takes_until(ends[0], take):
            self._expect(b",")
            return False
        for match in islice(END_OF_LIST.finditer(self._text, self._place), MAX_TRIES):
            if self._takes_until(match.start() + 1, take):
                self._expect(b"]")
                return True
        if any(self._takes_until(end, take) for end in ends[1:]):
            self._expect(b",")
            return False
        return None

    def _takes_until(self, end: int, take: Callable[[bytes], Any]) -> bool:
        """Return whether the text up to there is whole entries; if so, they were taken, and the place is there."""
        is_whole = _accepts(take, b"[%b]" % self._text[self._place : end])
        if is_whole:
            self._place = end
        return is_whole


def _accepts(take: Callable[[bytes], Any], text: bytes) -> bool:
    try:
        take(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
