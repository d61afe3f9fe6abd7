"""The text of an EPUB: a zip archive of XHTML chapters, in the order that its package document gives (the spine).

An archive may declare less than it unpacks to, or name one chapter a thousand times: each file is read once, and all of
them together no further than a limit.
"""

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from lxml import etree

from mindllm_engine.corpus.pages.decoding import decode_page
from mindllm_engine.corpus.pages.html import chapter_text
from mindllm_engine.corpus.pages.unreadable import ENCRYPTED, NO_TEXT, TOO_LARGE, Unreadable

DAMAGED = "damaged EPUB"
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
# Algorithms that scramble fonts alone (EPUB 3.3, section 4.4, and Adobe's).
_FONT_SCRAMBLING = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_ENCRYPTED_FLAG = 0x1


def epub_text(data: bytes, max_bytes: int) -> str:
    """Raises Unreadable for what is encrypted, damaged, without text, or unpacks to more than `max_bytes`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            book = _Archive(archive, max_bytes)
            book.refuse_encrypted()
            chapters = [chapter_text(decode_page(book.read(name), None)) for name in book.spine()]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, etree.LxmlError) as error:
        raise Unreadable(DAMAGED, f"{type(error).__name__}: {error}"[:200]) from None
    text = "\n\n".join(filter(None, map(str.strip, chapters)))
    if not text:
        raise Unreadable(NO_TEXT, f"EPUB of {len(chapters)} chapters")
    return text


class _Archive:
    """Files of a zip archive, up to a limit in all."""

    def __init__(self, archive: zipfile.ZipFile, max_bytes: int) -> None:
        self.archive, self.left, self.max_bytes = archive, max_bytes, max_bytes
        self.names = set(archive.namelist())

    def read(self, name: str) -> bytes:
        """Raises Unreadable where the file is missing or encrypted, or the limit is passed."""
        if name not in self.names:
            raise Unreadable(DAMAGED, f"no {name}"[:200])
        info = self.archive.getinfo(name)
        if info.flag_bits & _ENCRYPTED_FLAG:
            raise Unreadable(ENCRYPTED, "EPUB with a password")
        data = b""
        if info.file_size <= self.left:
            with self.archive.open(info) as file:
                data = file.read(self.left + 1)
        if max(len(data), info.file_size) > self.left:
            raise Unreadable(TOO_LARGE, f"EPUB that unpacks to over {self.max_bytes} bytes")
        self.left -= len(data)
        return data

    def refuse_encrypted(self) -> None:
        """Raises Unreadable where more than fonts is encrypted."""
        if _ENCRYPTION not in self.names:
            return
        methods = [element.get("Algorithm", "") for element in self.elements(_ENCRYPTION, "EncryptionMethod")]
        if set(methods) - _FONT_SCRAMBLING:
            raise Unreadable(ENCRYPTED, "EPUB with DRM")

    def spine(self) -> list[str]:
        """Names of the chapters' files, in reading order, each once; without the table of contents."""
        rootfile = next(self.elements(_CONTAINER, "rootfile"), None)
        package = unquote("" if rootfile is None else rootfile.get("full-path", ""))
        items = {item.get("id"): item for item in self.elements(package, "item")}
        names: dict[str, None] = {}
        for reference in self.elements(package, "itemref"):
            item = items.get(reference.get("idref"))
            if item is None or item.get("media-type") not in _PAGES or "nav" in item.get("properties", "").split():
                continue
            path = unquote(item.get("href", "").partition("#")[0])
            names[posixpath.normpath(posixpath.join(posixpath.dirname(package), path))] = None
        return [name for name in names if name in self.names]

    def elements(self, name: str, tag: str) -> Iterator[Any]:
        """Those of an XML file with a local name. Entities and external files are not followed."""
        parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
        root = etree.fromstring(self.read(name), parser)
        if root is None:
            raise Unreadable(DAMAGED, f"{name} is no XML"[:200])
        yield from root.iter(f"{{*}}{tag}")
