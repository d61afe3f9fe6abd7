"""How surprising an instruction's answer is to a pre-trained network: the data entropy of records (arXiv 2310.15777,
section 5.3), and the instruction-following difficulty (IFD, Li et al., arXiv 2308.12032).

Data entropy is the mean cross-entropy of tokens, in nats. Three readings of each record come from two sequences, the
record and its answer without what was asked:

    response        the tokens of the last answer, after the chat so far
    whole           every token of the chat up to the end of that answer
    response alone  the same tokens of the answer after nothing but `<s>`; IFD = response / response alone

Only the answer's own tokens count as response: not the symbols, and not the end, which follow from the template.
`score_files.py` writes the scores of whole files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.errors import DataError
from mindllm_engine.models import Network
from mindllm_engine.training.scoring import token_losses
from mindllm_engine.tuning.records import BadRecord, Record

TooLong = Literal["cut", "drop"]
Status = Literal["scored", "cut", "dropped", "bad"]


class PromptTemplate(Protocol):
    """What writes the chat so far as ids, after which an answer comes: `ChatTemplate`, or `PlainText`."""

    def prompt(self, messages: Sequence[Message]) -> list[int]: ...


class PlainText:
    """A chat as a page of text, for networks that know no chat symbols: `<s>`, and each message on its own line."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._line_break = tokenizer.encode("\n")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat so far. Each message is encoded by itself, as chat templates do it."""
        ids = [self._tokenizer.bos_id]
        for message in messages:
            ids += self._tokenizer.encode(message.content) + self._line_break
        return ids


@dataclass
class Score:
    """What became of a record. Entropies are in nats a token, None where the record was not scored.

    Attributes:
        status: scored; cut (scored, but for the end of its answer, which the network has no room for); dropped (too
            long); bad (nothing to learn from).
        reason: why it is not simply scored.
        instruction_chars, response_chars: of all that comes before the last answer, and of that answer.
        instruction_tokens: of all that comes before the last answer, symbols included, `<s>` not.
        response_tokens: of the answer, as far as it was scored.
        ifd: response_entropy / response_alone_entropy.
    """

    status: Status
    reason: str | None = None
    id: str | None = None
    lang: str | None = None
    instruction_chars: int | None = None
    response_chars: int | None = None
    instruction_tokens: int | None = None
    response_tokens: int | None = None
    response_entropy: float | None = None
    whole_entropy: float | None = None
    response_alone_entropy: float | None = None
    ifd: float | None = None


class Scorer:
    """Scores records under one network.

    Args:
        too_long: what becomes of a record that the network has no room for: its answer is cut, or it is dropped.
        pack_tokens: tokens in a forward. Another number changes entropies by rounding.
    """

    def __init__(
        self,
        model: Network,
        tokenizer: TextTokenizer,
        template: PromptTemplate,
        too_long: TooLong,
        pack_tokens: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._too_long = too_long
        self._pack_tokens = pack_tokens
        self._max_tokens = model.config.max_seq_len

    def scores(self, records: Sequence[Record | BadRecord]) -> list[Score]:
        """The score of each record. The same records give the same bits."""
        scores: list[Score] = []
        sequences: list[npt.NDArray[np.int32]] = []
        scored: list[Score] = []  # whose sequences these are, two a record
        for record in records:
            score, pair = self._prepare(record)
            scores.append(score)
            if pair is not None:
                sequences += pair
                scored.append(score)
        for number, losses in token_losses(self._model, sequences, self._pack_tokens):
            _enter(scored[number // 2], losses.astype(np.float64), alone=number % 2 == 1)
        for score in scored:
            _finish(score)
        return scores

    def _prepare(self, record: Record | BadRecord) -> tuple[Score, list[npt.NDArray[np.int32]] | None]:
        """A record's score so far and the sequences to score, if it can be."""
        if isinstance(record, BadRecord):
            return Score("bad", record.reason), None
        score = Score("scored", None, record.id, record.lang)
        score.instruction_chars = sum(len(message.content) for message in record.messages[:-1])
        score.response_chars = len(record.response)
        try:
            prompt = self._template.prompt(record.messages[:-1])
            response = self._tokenizer.encode(record.response)
        except DataError as error:
            return _refused(score, "bad", str(error)), None
        score.instruction_tokens, score.response_tokens = len(prompt) - 1, len(response)
        if not response:
            return _refused(score, "bad", "the response has no token"), None
        room = self._max_tokens - len(prompt)
        if len(response) > room:
            needs = f"{len(prompt) + len(response)} tokens, the network takes {self._max_tokens}"
            if room < 1:
                return _refused(score, "dropped", f"{needs}, which the instruction fills alone"), None
            if self._too_long == "drop":
                return _refused(score, "dropped", needs), None
            score.status, score.reason = "cut", f"{needs}: the response is cut from {len(response)} to {room}"
            response = response[:room]
            score.response_tokens = room
        return score, [np.array(ids, np.int32) for ids in (prompt + response, [self._tokenizer.bos_id, *response])]


def _refused(score: Score, status: Status, reason: str) -> Score:
    score.status, score.reason = status, reason
    return score


def _enter(score: Score, losses: npt.NDArray[np.float64], alone: bool) -> None:
    if alone:
        score.response_alone_entropy = float(losses.mean())
        return
    assert score.response_tokens is not None
    score.response_entropy = float(losses[-score.response_tokens :].mean())
    score.whole_entropy = float(losses.mean())


def _finish(score: Score) -> None:
    """Set IFD; a network that gives no finite loss has no score to give."""
    entropies = score.response_entropy, score.whole_entropy, score.response_alone_entropy
    if not np.isfinite(np.array(entropies, np.float64)).all():
        score.response_entropy = score.whole_entropy = score.response_alone_entropy = None
        score.status, score.reason = "bad", "the network's loss is not finite"
        return
    if score.response_entropy is not None and score.response_alone_entropy:
        score.ifd = score.response_entropy / score.response_alone_entropy
