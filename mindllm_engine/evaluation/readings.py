"""Which candidate a network prefers, in every reading of "the perplexity of each candidate" that papers mean.

The candidate with the highest log-probability of the answer: its sum, its mean a token, its mean a byte; or the same
of prompt and answer together (OpenCompass's PPL). All come from one pass. A sum favours short answers, a mean
long ones.
"""

from dataclasses import dataclass

READINGS = (
    "answer, sum",
    "answer, mean a token",
    "answer, mean a byte",
    "prompt and answer, sum",
    "prompt and answer, mean a token",
    "prompt and answer, mean a byte",
)


@dataclass(frozen=True)
class CandidateScores:
    """Log-probabilities in nats of one candidate, and what they are sums over.

    Attributes:
        answer, whole: of the answer after its prompt, and of both. `whole` leaves out the first token, which nothing
            predicts, and equals `answer` where prompts were not scored.
        is_greedy: whether every token of the answer is the likeliest.
    """

    answer: float
    answer_tokens: int
    answer_bytes: int
    whole: float
    whole_tokens: int
    whole_bytes: int
    is_greedy: bool

    def values(self) -> dict[str, float]:
        """What each reading goes by; the higher, the better."""
        numbers = (
            self.answer,
            self.answer / self.answer_tokens,
            self.answer / max(self.answer_bytes, 1),
            self.whole,
            self.whole / self.whole_tokens,
            self.whole / max(self.whole_bytes, 1),
        )
        return dict(zip(READINGS, numbers, strict=True))
