"""The engine's networks as a language model of lm-evaluation-harness (`lm_eval`, the extra [eval]).

Texts become ids as the harness's own `hf` backend makes them from an exported network, so that the log-likelihoods are
the same; what the requests share goes through the network once (`prefix_scoring.py`, `batched_generation.py`). Every
rank is given all requests, works on its share and receives all answers, so that nothing depends on the number of ranks.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch.distributed as dist
import xxhash
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mindllm_engine.corpus.chat_template import ChatTemplate, Message, Role
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.distributed.process_group import World, raise_together
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.batched_generation import Sampling, generate_batch
from mindllm_engine.evaluation.prefix_scoring import Score, Scored, score
from mindllm_engine.evaluation.readings import CandidateScores
from mindllm_engine.evaluation.token_tree import Tokens
from mindllm_engine.evaluation.tree_forward import PACK_TOKENS
from mindllm_engine.models import Network

# New tokens where a task does not say how many: the harness's own number.
MAX_NEW_TOKENS = 256

Answer = TypeVar("Answer")
# Told what is being done, and how many requests there are; gives what is to be told how many more are done.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class EncodedPair:
    """A context and its continuation as ids: int32, of at least one token each."""

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat: its ids (int32, as bytes: there are many), and the beginning of the answer that goes on, which
    is encoded together with what follows it."""

    ids_bytes: bytes
    begun: str

    @property
    def ids(self) -> list[int]:
        ids: list[int] = np.frombuffer(self.ids_bytes, np.int32).tolist()
        return ids


class EngineLM(TemplateLM):
    """A network and its tokenizer, as `lm_eval.evaluate(lm=...)` takes them.

    Args:
        model: in evaluation mode.
        tokenizer: its ids are the network's.
        world: this rank among all.
        add_bos_token: begin every text with `<s>` as documents in training do; `hf` does it where the exported
            tokenizer does, or its `add_bos_token` says so.
        template: asks in chats, for `lm_eval.evaluate(apply_chat_template=True)`; None where that is not wanted.
        read_prompts: score all of each prompt besides its answer, for `candidate_scores`; logits are then needed
            everywhere, which takes longer.
        pack_tokens: tokens in a forward. batch_size: prompts that decode together. Neither changes results.
        progress: what shows how far the requests are.

    Attributes:
        candidate_scores: what `loglikelihood` found for each (context, continuation), for other readings of accuracy.
        notes: what was done to requests that did not fit the network, and how often.
    """

    def __init__(
        self,
        model: Network,
        tokenizer: TextTokenizer,
        world: World,
        add_bos_token: bool = True,
        template: ChatTemplate | None = None,
        read_prompts: bool = False,
        pack_tokens: int = PACK_TOKENS,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        check_tokenizer(model, tokenizer)
        self.model = model
        self.text_tokenizer = tokenizer
        self.world = world
        self.add_bos_token = add_bos_token
        self.template = template
        self.read_prompts = read_prompts
        self.pack_tokens = pack_tokens
        self.batch_size = batch_size
        self.progress: Progress = progress or _silent
        self.candidate_scores: dict[tuple[str, str], CandidateScores] = {}
        self.notes: Counter[str] = Counter()
        # The harness hands texts around; of those that are chats, what stands for them.
        self._chats: dict[str, ChatPrompt] = {}
        self._stop_ids = {tokenizer.eos_id} if template is None else template.stop_ids

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text_tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """Tokens that the network takes."""
        return self.model.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        return self.text_tokenizer.hash

    def forget_requests(self) -> None:
        """Let go of what was kept of the requests so far, before those of another task."""
        self.candidate_scores.clear()
        self.notes.clear()
        self._chats.clear()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat in the run's template, for reading; its ids, which are `ChatTemplate.prompt`'s, are remembered.

        Without `add_generation_prompt` the last message begins the answer.

        Raises ConfigError where there is no template, DataError for a text that cannot be encoded.
        """
        if self.template is None:
            raise ConfigError("a chat was asked for, but the network was opened without a chat template")
        # What a role may be, `Message` says; the harness has no other.
        messages = [Message(cast(Role, each["role"]), each["content"]) for each in chat_history]
        begun = "" if add_generation_prompt else messages.pop().content
        chat = ChatPrompt(_ids(self.template.prompt(messages)).tobytes(), begun)
        text = self.template.spelled_prompt(messages) + begun
        while self._chats.setdefault(text, chat) != chat:  # a message that spells symbols, or parts of the template
            text += "\u2060"  # which cannot be seen
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, with `<s>` where `add_special_tokens`, or else `add_bos_token`, says so."""
        chat = self._chats.get(string)
        if chat is not None:
            return [*chat.ids, *self._encode_all([chat.begun], False)[chat.begun]]
        return self._encode_all([string], add_special_tokens)[string]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation) its log-probability in nats, and whether greedy decoding would give it.

        Raises DataError, naming task and record, for a continuation without a token or longer than the network takes.
        """

        def work(mine: list[Instance], done: Callable[[int], None]) -> list[CandidateScores]:
            pairs = self._encode_pairs(mine)
            sequences = [self._scored(pair) for pair in pairs]
            scores = score(self.model, sequences, self.pack_tokens, done)
            return [_summary(request, pair, found) for request, pair, found in zip(mine, pairs, scores, strict=True)]

        summaries = self._share("scoring", requests, work)
        for request, summary in zip(requests, summaries, strict=True):
            self.candidate_scores[request.args[0], request.args[1]] = summary
        return [(summary.answer, summary.is_greedy) for summary in summaries]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability in nats of each whole text, in windows that overlap by one token where it is long."""

        def work(mine: list[Instance], done: Callable[[int], None]) -> list[float]:
            windows: list[Scored] = []
            counts: list[int] = []
            for (text,) in (request.args for request in mine):
                pieces = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
                pairs = [EncodedPair(*make_disjoint_window(piece)) for piece in pieces]
                windows += [Scored(_ids(pair.context + pair.continuation), len(pair.context)) for pair in pairs]
                counts.append(len(pairs))
            scores = iter(score(self.model, windows, self.pack_tokens))
            sums = [sum(float(next(scores).log_probabilities.sum()) for _ in range(count)) for count in counts]
            done(len(mine))
            return sums

        return self._share("scoring", requests, work)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each (context, keyword arguments), cut before the first of its `until` strings.

        `temperature`, `top_p` and `max_gen_toks` are heeded as the harness gives them; drawn tokens depend on the
        context and on how often it was asked before.
        """
        # How often the same context stood among the requests before: draws of repeats must differ, on any rank.
        seen: Counter[str] = Counter()
        repeats = {}
        for number, request in enumerate(requests):
            repeats[number] = seen[request.args[0]]
            seen[request.args[0]] += 1

        def work(mine: list[tuple[int, Instance]], done: Callable[[int], None]) -> list[str]:
            found: dict[int, str] = {}
            groups: dict[str, list[tuple[int, Instance]]] = defaultdict(list)
            for number, request in mine:
                groups[repr(sorted(request.args[1].items()))].append((number, request))
            for group in groups.values():
                found.update(self._generate(group, repeats, done))
            return [found[number] for number, _ in mine]

        return self._share("generating", list(enumerate(requests)), work)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """What the base class would call; `loglikelihood` here goes straight to `score`."""
        sequences = [self._scored(EncodedPair(context, continuation)) for _, context, continuation in requests]
        found = score(self.model, sequences, self.pack_tokens)
        answers = [each[-len(request[2]) :] for each, request in zip(map(_pairs, found), requests, strict=True)]
        return [(float(sum(value for value, _ in each)), all(best for _, best in each)) for each in answers]

    def _generate(
        self, group: list[tuple[int, Instance]], repeats: dict[int, int], done: Callable[[int], None]
    ) -> dict[int, str]:
        """By their numbers, the texts of requests with the same keyword arguments."""
        arguments = normalize_gen_kwargs(group[0][1].args[1], MAX_NEW_TOKENS)
        until = handle_stop_sequences(arguments.get("until"), eos=None)
        room = min(arguments["max_gen_toks"], self.max_length // 2)
        if room < arguments["max_gen_toks"]:
            self.notes[f"answers limited to {room} tokens, half of what the network takes"] += len(group)
        sampling = Sampling(float(arguments.get("temperature") or 0.0), float(arguments.get("top_p") or 1.0))
        contexts = [request.args[0] for _, request in group]
        encoded = self._encode_all([context for context in contexts if context not in self._chats])
        prompts = {}
        for (number, _), context in zip(group, contexts, strict=True):
            ids = self.tok_encode(context) if context in self._chats else encoded[context] or [self.prefix_token_id]
            if len(ids) > self.max_length - room:
                self.notes["prompts cut from the left"] += 1
            prompts[number] = _ids(ids[-(self.max_length - room) :])
        # A stop string ends within the last token, and a token is a byte at least.
        tail = max((len(text.encode()) for text in until), default=0) + 1
        texts: dict[int, str] = {}
        # In the order of their tokens, so that a batch shares what it can.
        order = sorted(prompts, key=lambda number: (prompts[number].tolist(), number))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            found = generate_batch(
                self.model,
                [prompts[number] for number in batch],
                room,
                self.text_tokenizer.vocab_size,
                lambda new: self._is_done(new, until, tail),
                sampling,
                [_seed(prompts[number], repeats[number]) for number in batch],
            )
            for number, new in zip(batch, found, strict=True):
                text = self.text_tokenizer.decode(new)
                texts[number] = postprocess_generated_text(text, until, think_end_token=None)
            done(len(batch))
        return texts

    def _is_done(self, new: list[int], until: list[str], tail: int) -> bool:
        if new[-1] in self._stop_ids:
            return True
        text = self.text_tokenizer.decode(new[-tail:])
        return any(stop and stop in text for stop in until)

    def _scored(self, pair: EncodedPair) -> Scored:
        """What of a pair the network is asked: all that it takes of the end."""
        tokens = pair.context + pair.continuation
        if len(tokens) > self.max_length + 1:
            self.notes["contexts cut from the left"] += 1
            tokens = tokens[-(self.max_length + 1) :]
        return Scored(_ids(tokens), 1 if self.read_prompts else len(tokens) - len(pair.continuation))

    def _encode_pairs(self, requests: Sequence[Instance]) -> list[EncodedPair]:
        """As `TemplateLM.loglikelihood` does it, but each distinct text once: spaces at a context's end go to the
        continuation, and a continuation's ids are what the ids of both together have beyond the context's. The ids of
        a chat stand before both."""
        texts: list[str] = []
        bare: list[str] = []
        moved = []
        for context, continuation in (request.args for request in requests):
            chat = self._chats.get(context)
            open_text = context if chat is None else chat.begun
            kept = open_text.rstrip()
            moved.append((chat, kept, open_text[len(kept) :] + continuation))
            if chat is not None:
                bare += [kept, kept + moved[-1][2]]
            elif context:
                texts += [kept, kept + moved[-1][2]]
            else:
                bare.append(continuation)
        encoded, encoded_bare = self._encode_all(texts), self._encode_all(bare, False)
        pairs = []
        for request, (chat, context, continuation) in zip(requests, moved, strict=True):
            if chat is not None:
                before, both = encoded_bare[context], encoded_bare[context + continuation]
                pair = EncodedPair([*chat.ids, *before], both[len(before) :])
            elif request.args[0]:
                before = encoded[context]
                pair = EncodedPair(before, encoded[context + continuation][len(before) :])
            else:
                ids = encoded_bare[request.args[1]]
                # A text that begins with the prefix already does not get it twice.
                at_start = ids[:1] == [self.prefix_token_id]
                pair = EncodedPair(ids[:1], ids[1:]) if at_start else EncodedPair([self.prefix_token_id], ids)
            pairs.append(self._checked(pair, request))
        return pairs

    def _checked(self, pair: EncodedPair, request: Instance) -> EncodedPair:
        where = f"task {request.task_name}, record {request.doc_id}"
        answer = request.args[1]
        if not pair.continuation:
            raise DataError(
                f"{where}: the answer {answer!r} adds no token to its context: it is empty, or becomes one token "
                "with the context's end; mend the task's choices or target_delimiter"
            )
        if not pair.context:  # only where no <s> is added
            return EncodedPair([self.prefix_token_id], pair.continuation)
        if len(pair.continuation) > self.max_length:
            raise DataError(
                f"{where}: the answer has {len(pair.continuation)} tokens; the network takes {self.max_length}"
            )
        return pair

    def _encode_all(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> dict[str, list[int]]:
        """The ids of each distinct text."""
        texts = list(dict.fromkeys(texts))
        if not texts:
            return {}
        begin = self.add_bos_token if add_special_tokens is None else add_special_tokens
        prefix = [self.prefix_token_id] if begin else []
        ids, lengths = self.text_tokenizer.encode_batch(texts)
        pieces = np.split(ids, np.cumsum(lengths)[:-1])
        return {text: prefix + piece.tolist() for text, piece in zip(texts, pieces, strict=True)}

    def _share(
        self, what: str, requests: list[Any], work: Callable[[list[Any], Callable[[int], None]], list[Answer]]
    ) -> list[Answer]:
        """The answers to all requests, of which each rank works out a run of neighbours."""
        rank, size = self.world.rank, self.world.world_size
        bounds = [len(requests) * number // size for number in range(size + 1)]
        mine = requests[bounds[rank] : bounds[rank + 1]]
        answers: list[Answer] = []
        failure: DataError | None = None
        with self.progress(what, len(mine)) as done:
            try:
                answers = work(mine, done) if mine else []
            except DataError as error:
                failure = error
        raise_together(failure, "another rank met a record that cannot be used")
        if size == 1:
            return answers
        gathered: list[Any] = [None] * size
        dist.all_gather_object(gathered, (answers, self.notes))
        self.notes = sum((notes for _, notes in gathered), Counter())
        if rank:  # counted once
            self.notes = Counter()
        return [answer for answers, _ in gathered for answer in answers]


def check_tokenizer(model: Network, tokenizer: TextTokenizer) -> None:
    """Raises DataError where the tokenizer gives ids that the network does not have."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"{tokenizer.model_path}: has {tokenizer.vocab_size} ids and the network {model.config.vocab_size}: it is "
            "not the tokenizer that the network was trained with"
        )


def _summary(request: Instance, pair: EncodedPair, found: Score) -> CandidateScores:
    context, continuation = request.args
    if np.isnan(found.log_probabilities).any():
        raise DataError(
            f"task {request.task_name}, record {request.doc_id}: the network's log-probabilities are NaN, which is no "
            "score; take an earlier checkpoint"
        )
    answer = found.log_probabilities[-len(pair.continuation) :]
    return CandidateScores(
        answer=float(answer.sum()),
        answer_tokens=len(answer),
        answer_bytes=len(continuation.encode()),
        whole=float(found.log_probabilities.sum()),
        whole_tokens=len(found.log_probabilities),
        whole_bytes=len((context + continuation).encode()),
        is_greedy=bool(found.is_likeliest[-len(pair.continuation) :].all()),
    )


def _pairs(found: Score) -> list[tuple[float, bool]]:
    return list(zip(found.log_probabilities.tolist(), found.is_likeliest.tolist(), strict=True))


def _ids(tokens: list[int]) -> Tokens:
    return np.array(tokens, np.int32)


def _seed(prompt: Tokens, repeat: int) -> int:
    return xxhash.xxh3_64_intdigest(prompt.tobytes(), seed=repeat) >> 1  # torch takes 63 bits


@contextlib.contextmanager
def _silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None
