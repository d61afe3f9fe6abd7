"""Samples as tuning reads them, for people: every token in the colour of its weight in the loss, packed sequence by
packed sequence. Taken from the loader's batches, so what is shown is what is trained on."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.corpus.special_tokens import CHAT_TOKENS
from mindllm_engine.data.inspection_text import visible
from mindllm_engine.data.loader import IGNORED, Loader
from mindllm_engine.errors import DataError

LEARNT = "bold green"
CONTEXT = "dim"
UNDEFINED = "on red"  # of text that is half a character: the border lies where no message ends

LEGEND = Text.assemble("loss weight ", ("1: learnt", LEARNT), ", ", ("0: context only", CONTEXT))


@dataclass(frozen=True, eq=False)
class SequenceView:
    """Tokens that attend to each other.

    Attributes:
        document: its number in the source's file.
        ids: (n,) int64; the last token of a sample is only predicted.
        learnt: (n,) bool.
    """

    document: int
    ids: NDArray[np.int64]
    learnt: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TuningSample:
    """A global sample: its source's name, its sequences, and the places that no record fills."""

    number: int
    source: str
    sequences: list[SequenceView]
    padding: int


def look_at_tuning(loader: Loader, number: int) -> TuningSample:
    """A sample as the loader gives it to training. Raises DataError for a damaged file."""
    batch = loader.read(np.array([number]))
    source, stretches = loader.find(number)
    targets = batch.targets.numpy()
    filled = int(stretches[:, 3].sum())
    learnt = np.concatenate([[False], targets != IGNORED])[:filled]
    # The token beyond the inputs is known only where it is learnt.
    row = np.append(batch.tokens.numpy(), targets[-1:][targets[-1:] != IGNORED])[:filled]
    ends = np.cumsum(stretches[:, 3])
    borders = [begin for begin in batch.cu_seqlens.tolist()[:-1] if begin < len(row)]
    sequences = []
    for begin, end in itertools.pairwise([*borders, len(row)]):
        document = int(stretches[np.searchsorted(ends, begin, side="right"), 0])
        sequences.append(SequenceView(document, row[begin:end], learnt[begin:end]))
    return TuningSample(number, loader.plan.sources[source].name, sequences, max(0, len(targets) - filled))


def print_tuning_sample(console: Console, sample: TuningSample, tokenizer: TextTokenizer | None) -> None:
    """Print a sample, with a line above each sequence."""
    console.rule(Text(f"sample {sample.number:,}: {sample.source}", style="bold"), align="left", characters="═")
    symbols = symbols_of(tokenizer) if tokenizer is not None else {}
    for view in sample.sequences:
        title = f"record {view.document:,}: {len(view.ids):,} tokens, {np.count_nonzero(view.learnt):,} learnt"
        console.rule(Text(title, style="cyan"), align="left")
        text = Text()
        for piece, is_learnt in pieces(view, tokenizer, symbols):
            text.append(piece, UNDEFINED if "\ufffd" in piece else LEARNT if is_learnt else CONTEXT)
        console.print(text, soft_wrap=True)
    if sample.padding:
        console.rule(Text(f"padding: {sample.padding:,} tokens", style="cyan"), align="left")
    console.print()


def pieces(view: SequenceView, tokenizer: TextTokenizer | None, symbols: dict[int, str]) -> list[tuple[str, bool]]:
    """A sequence as (text, whether it is learnt) in order: symbols by their names, what lies between them decoded; ids
    where there is no tokenizer."""
    shown = []
    keys = [
        (symbols.get(token), bool(is_learnt)) for token, is_learnt in zip(view.ids.tolist(), view.learnt, strict=True)
    ]
    for (symbol, is_learnt), run in itertools.groupby(
        zip(keys, view.ids.tolist(), strict=True), key=lambda pair: pair[0]
    ):
        ids = [token for _, token in run]
        if symbol is not None:
            text = symbol * len(ids)
        elif tokenizer is None:
            text = "".join(f"{token} " for token in ids)
        else:
            text = visible(tokenizer.decode(ids))
        shown.append((text, is_learnt))
    return shown


def symbols_of(tokenizer: TextTokenizer) -> dict[int, str]:
    """The symbols that decode to nothing: of chats, where the tokenizer has them, and the ends of documents."""
    symbols = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    for name in CHAT_TOKENS:
        try:
            symbols[tokenizer.special_id(name)] = name
        except DataError:
            continue
    return symbols
