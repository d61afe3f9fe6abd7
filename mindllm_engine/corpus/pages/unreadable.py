"""What extraction raises for a document that has no text to give."""


class Unreadable(Exception):
    """
    Attributes:
        reason: a few fixed words, the same for all documents that fail for this.
        detail: what was found in this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


ENCRYPTED = "encrypted"
UNKNOWN_ENCODING = "unknown encoding"
TOO_LARGE = "too large"
NO_TEXT = "no text"
