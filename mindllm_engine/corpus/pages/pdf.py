"""The text of a PDF, by pypdf: its pages in order, an empty line between them."""

import io

from pypdf import PdfReader
from pypdf.errors import DependencyError, PyPdfError

from mindllm_engine.corpus.pages.unreadable import ENCRYPTED, NO_TEXT, Unreadable

# Above this share of pages that fail, a book is dropped; below, they are left out of it.
MAX_FAILED_PAGES = 0.1


def pdf_text(data: bytes) -> str:
    """Raises Unreadable for what is encrypted, damaged, or pictures alone."""
    try:
        reader = PdfReader(io.BytesIO(data))
        # A file that anyone may open is often encrypted with the empty password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable(ENCRYPTED, "PDF with a password")
        pages = len(reader.pages)
    except (DependencyError, NotImplementedError) as error:
        raise Unreadable(ENCRYPTED, f"PDF: {error}") from None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Unreadable("damaged PDF", f"{type(error).__name__}: {error}"[:200]) from None
    texts, failed = [], 0
    for number in range(pages):
        try:
            texts.append(reader.pages[number].extract_text().strip())
        except MemoryError:
            raise
        except Exception:  # pypdf raises all kinds on damaged pages
            failed += 1
    if failed > MAX_FAILED_PAGES * pages:
        raise Unreadable("damaged PDF", f"{failed} of {pages} pages")
    text = "\n\n".join(filter(None, texts))
    if not text:
        raise Unreadable(NO_TEXT, f"PDF of {pages} pages")
    return text
