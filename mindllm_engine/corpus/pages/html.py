"""The text of a page: its article by resiliparse, fast, or by trafilatura, better (its quality mode favours precision).

Scripts, styles, tags, navigation, readers' comments and the descriptions of images are left out; both libraries find
the article by the structure of the page and not by its language.
"""

from mindllm_engine.corpus.pages.decoding import decode_page


class HtmlExtractor:
    """
    Args:
        extractor: "resiliparse" or "trafilatura".
    """

    def __init__(self, extractor: str) -> None:
        if extractor == "trafilatura":
            import trafilatura

            # Readers of other formats come through the same function, in which a page must have no say.
            def article(html: str) -> str:
                return trafilatura.extract(html, favor_precision=True, include_comments=False) or ""
        else:
            from resiliparse.extract.html2text import extract_plain_text

            def article(html: str) -> str:
                text = extract_plain_text(html, main_content=True, alt_texts=False, comments=False, post_meta=False)
                return str(text)

        self.article = article

    def page_text(self, data: bytes, charset: str | None) -> str:
        """The article of a page, as paragraphs; empty where there is none. Raises Unreadable."""
        html = decode_page(data, charset)
        # Searching bytes is much the faster: of a string with wider characters every other byte is zero.
        return self.article(html.replace("\0", "") if b"\0" in data else html)


def chapter_text(html: str) -> str:
    """All text of a chapter of a book, which has nothing around it."""
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(html.replace("\0", ""), alt_texts=False))
