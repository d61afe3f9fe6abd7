"""Near-duplicates: how fast are they found, how many of planted ones, how many falsely, and in how much memory?

    python benchmarks/corpus.py --only near_duplicates

Peers are the package `simhash` (its index of k = 3, on the same shingles) and datatrove's MinHash (signatures and
buckets, as many hashes). Each side has one thread. Speeds are by the processor's time of the best of several turns, so
that other work on the machine takes little from either side; waiting for the disk is left out for both. Without real
text or a peer its rows have none.
"""

import gzip
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import xxhash

from benchmarks.process_memory import forget_peak, in_fresh_process, peak_bytes, resident_bytes
from mindllm_engine.corpus.near_duplicates import (
    NearDuplicatesConfig,
    find_duplicates,
    make_signer,
    read_duplicates,
)

Row = dict[str, Any]
Text = tuple[str, str]  # language, text
Method = Literal["simhash", "minhash"]

METHODS: tuple[Method, ...] = ("simhash", "minhash")
EDIT_RATES = (0.01, 0.03, 0.05, 0.10)
SIMHASH_BAR, MINHASH_BAR, MEMORY_BAR = 50, 1, 2 << 30
MEMORY = 1 << 30  # of the search
MILLION = 1_000_000
PIECES, PIECE = 5, 100  # of a document of the million, and their characters
TURNS = 3


def row(name: str, unit: str, ours: float | None, peer: float | None, peer_name: str, bar: float | None) -> Row:
    """Rates: `ratio` is ours / peer, and the bar is on it. All else has no peer: the bar is on `ours`, from above."""
    ratio = ours / peer if ours is not None and peer is not None else None
    figure = ratio if unit.endswith("/s") else ours
    holds = None if bar is None or figure is None else figure >= bar if unit.endswith("/s") else figure < bar
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar, "holds": holds}
    return {"name": name, "unit": unit, **figures, "reason": None}


def without_peer(name: str, unit: str, bar: float, package: str) -> Row:
    return row(name, unit, None, None, package, bar) | {"reason": f"{package} is not installed"}


def best_seconds(call: Callable[[], Any], turns: int = TURNS) -> float:
    """Of the processor, in the best of several turns."""
    seconds = []
    for _ in range(turns):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def real_texts(data: Path, lang: str) -> list[Text]:
    """All different texts of a language, shuffled."""
    texts: dict[str, None] = {}
    for path in sorted((data / "pretrain").glob(f"{lang}_*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts.update((json.loads(line)["text"], None) for line in lines)
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    return [(lang, text) for text in shuffled]


def search(config: NearDuplicatesConfig, files: list[list[Text]], folder: Path) -> None:
    """Sign and find: `folder/found/<i>.duplicates`."""
    signer = make_signer(config)
    paths = [folder / f"{number}.signatures" for number in range(len(files))]
    for path, texts in zip(paths, files, strict=True):
        path.write_bytes(b"".join(signer.sign(text, lang) for lang, text in texts))
    find_duplicates(config, paths, folder / "found", MEMORY)


# -- SimHash against the package of that name ---


def units(text: str) -> list[str]:
    """Words and single Han characters, much as csrc/shingles.hpp has them."""
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())


def shingle_counts(lang: str, text: str, config: NearDuplicatesConfig) -> dict[str, int]:
    """Shingles with their weights in our SimHash."""
    n = config.simhash_characters if lang == "zh" else config.simhash_words
    found = units(text)
    counts = Counter(" ".join(found[i : i + n]) for i in range(max(1, len(found) - n + 1)))
    return {shingle: times.bit_length() for shingle, times in counts.items()}


def simhash_rows(texts: list[Text], folder: Path) -> Iterator[Row]:
    """Documents a second, from texts to pairs: signing, indexing and asking for the neighbours of each."""
    name = "SimHash, from texts to near-duplicates"
    if find_spec("simhash") is None:
        yield without_peer(name, "documents/s", SIMHASH_BAR, "simhash")
        return
    import simhash

    config = NearDuplicatesConfig()
    features = [shingle_counts(lang, text, config) for lang, text in texts]

    def neighbours(signatures: list[Any]) -> None:
        index = simhash.SimhashIndex([(str(i), signature) for i, signature in enumerate(signatures)], k=config.distance)
        for signature in signatures:
            index.get_near_dups(signature)

    # Its own shingles, of four characters, it does not survive: numpy 2 refuses weights over 255.
    sides = {
        f"{name}, on our shingles": lambda: neighbours(
            [simhash.Simhash(shingle_counts(lang, text, config)) for lang, text in texts]
        ),
        f"{name}, on our shingles, given to the peer": lambda: neighbours([simhash.Simhash(each) for each in features]),
    }
    ours = best_seconds(lambda: search(config, [texts], folder), 2 * TURNS)
    for what, peer in sides.items():
        bar = None if what.endswith("given to the peer") else SIMHASH_BAR  # which then does less than we do
        yield row(what, "documents/s", len(texts) / ours, len(texts) / best_seconds(peer, 2), "simhash", bar)
    signer = make_signer(config)
    seconds = best_seconds(lambda: [signer.sign(text, lang) for lang, text in texts])
    megabytes = sum(len(text.encode()) for _, text in texts) / 1e6
    yield row("SimHash, signing alone", "MB/s", megabytes / seconds, None, "none", None)


# -- MinHash against datatrove's ---


class SplitAtSpaces:
    """A word tokenizer of datatrove's interface."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def minhash_rows(texts: list[Text], folder: Path) -> Iterator[Row]:
    """Documents a second: signatures and what follows; theirs without the clusters, ours with."""
    name = "MinHash, from texts to near-duplicates (en)"
    if find_spec("datatrove") is None:
        yield without_peer(name, "documents/s", MINHASH_BAR, "datatrove")
        return
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.logging import logger

    logger.remove()
    # Theirs for English is spaCy's, which is slower and would have to be installed.
    minhash.load_word_tokenizer = lambda language: SplitAtSpaces()
    config = NearDuplicatesConfig(method="minhash")
    theirs = minhash.MinhashConfig(
        n_grams=config.minhash_words, num_buckets=config.bands, hashes_per_bucket=config.hashes // config.bands
    )

    def their_search() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            documents = iter([Document(text, str(i)) for i, (_, text) in enumerate(texts)])
            signing = minhash.MinhashDedupSignature(f"{own}/signatures", config=theirs)
            # As theirs, which xxhash 4 refuses for giving it a str.
            signing._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
            signing.run(documents)
            for bucket in range(config.bands):
                step = minhash.MinhashDedupBuckets(f"{own}/signatures", f"{own}/buckets", config=theirs)
                step.run(rank=bucket, world_size=config.bands)

    ours = best_seconds(lambda: search(config, [texts], folder))
    peer = best_seconds(their_search, 2)
    yield row(name, "documents/s", len(texts) / ours, len(texts) / peer, "datatrove", MINHASH_BAR)
    signer = make_signer(config)
    seconds = best_seconds(lambda: [signer.sign(text, lang) for lang, text in texts])
    megabytes = sum(len(text.encode()) for _, text in texts) / 1e6
    yield row("MinHash, signing alone (en)", "MB/s", megabytes / seconds, None, "none", None)


# -- Planted near-duplicates ---


def edited(chooser: random.Random, lang: str, text: str, rate: float, strangers: list[str]) -> str:
    """So many of the words, or in Chinese of the characters, replaced, removed, or with a stranger behind them."""
    parts = list(text) if lang == "zh" else text.split(" ")
    for place in chooser.sample(range(len(parts)), max(1, round(rate * len(parts)))):
        stranger = chooser.choice(strangers)
        parts[place] = chooser.choice((stranger, "", f"{parts[place]}{'' if lang == 'zh' else ' '}{stranger}"))
    return ("" if lang == "zh" else " ").join(parts)


def alike(text: str, other: str) -> bool:
    """Whether two real texts may be called near-duplicates: they share half of their shingles of three units."""
    sets = [{tuple(found[i : i + 3]) for i in range(max(1, len(found) - 2))} for found in (units(text), units(other))]
    return 2 * len(sets[0] & sets[1]) >= len(sets[0] | sets[1])


def planted_rows(name: str, texts: list[Text], folder: Path) -> Iterator[Row]:
    """What share of edited copies is found with its original, and what share of all that is found is rightly so."""
    lang = texts[0][0]
    chooser = random.Random(1)
    strangers = [
        part for _, text in texts[:200] for part in (text if lang == "zh" else text.split(" ")) if part.strip()
    ]
    files = [texts]
    for rate in EDIT_RATES:
        files.append([(lang, edited(chooser, lang, text, rate, strangers)) for _, text in texts])
    for method in METHODS:
        own = folder / method
        own.mkdir()
        search(NearDuplicatesConfig(method=method), files, own)
        originals = {o: k for o, _, k, _ in read_duplicates(own / "found" / "0.duplicates").tolist()}
        wrong = sum(not alike(texts[o][1], texts[k][1]) for o, k in originals.items())
        found = len(originals)
        for number, rate in enumerate(EDIT_RATES, 1):
            recalled = 0
            for ordinal, kept_file, kept, _ in read_duplicates(own / "found" / f"{number}.duplicates").tolist():
                right = kept in (ordinal, originals.get(ordinal, ordinal))
                recalled += right and kept_file == 0
                found += 1
                wrong += not right and not alike(texts[ordinal][1], texts[kept][1])
            share = recalled / len(texts)
            yield row(f"recall, {method}, {name}, {rate:.0%} edited", "share", share, None, "none", None)
        precision = 1 - wrong / found if found else None
        yield row(f"precision, {method}, {name}, {found} found", "share", precision, None, "none", None)


# -- A million documents ---


def million_rows(zh: list[Text], en: list[Text], documents: int, folder: Path) -> Iterator[Row]:
    """Random pieces of long real texts, one in ten of them a copy of an earlier one: memory of signing and search."""
    for method in METHODS:
        seconds, signing, peak, found = in_fresh_process(_search_pieces, method, zh, en, documents, folder)
        what = f"{method}, {documents:,} documents, {found:,} found"
        yield row(f"{what}: memory", "bytes", peak, None, "none", MEMORY_BAR)
        yield row(f"{what}: cutting and signing", "documents/s", documents / signing, None, "none", None)
        yield row(f"{what}: search", "documents/s", documents / seconds, None, "none", None)


def _search_pieces(
    method: Method, zh: list[Text], en: list[Text], documents: int, folder: Path
) -> tuple[float, float, int, int]:
    config = NearDuplicatesConfig(method=method)
    signer = make_signer(config)
    chooser = random.Random(2)
    texts = {lang: [text for _, text in some if len(text) > 20 * PIECE] for lang, some in (("zh", zh), ("en", en))}
    before = resident_bytes()
    forget_peak()
    begin = time.process_time()
    path = folder / f"{method}.signatures"
    to_copy: list[Text] = []
    with path.open("wb") as file:
        for number in range(documents):
            if number % 10 == 9:
                lang, text = chooser.choice(to_copy)
            else:
                lang = chooser.choice(("zh", "en"))
                places = [chooser.choice(texts[lang]) for _ in range(PIECES)]
                starts = [chooser.randrange(len(place) - PIECE) for place in places]
                text = " ".join(place[at : at + PIECE] for place, at in zip(places, starts, strict=True))
                if len(to_copy) < 10_000:
                    to_copy.append((lang, text))
            file.write(signer.sign(text, lang))
    signed = time.process_time()
    counts = find_duplicates(config, [path], folder / f"{method}_found", MEMORY)
    return time.process_time() - signed, signed - begin, peak_bytes() - before, counts.exact + counts.near


def rows(data: Path, scale: float = 1.0) -> Iterator[Row]:
    """All of them. `data`: folder of the real text. `scale`: of the numbers of documents, at most 1."""
    if not (data / "pretrain").is_dir():
        yield row("near-duplicates", "documents/s", None, None, "none", None) | {"reason": f"no real text in {data}"}
        return
    zh, en = real_texts(data, "zh"), real_texts(data, "en")
    few = max(20, int(1500 * scale))
    with tempfile.TemporaryDirectory(prefix="near_duplicates_") as name:
        folder = Path(name)
        yield from simhash_rows(zh[:few] + en[:few], folder)
        yield from minhash_rows(en[:few], folder)
        for lang, texts in (("zh", zh), ("en", en)):
            short = [each for each in texts if len(each[1]) < 1000]
            long = [each for each in texts if len(each[1]) >= 1000]
            for kind, some in ((f"{lang} under 1,000 characters", short), (f"{lang} from 1,000 on", long)):
                own = folder / kind.replace(" ", "_")
                own.mkdir()
                yield from planted_rows(kind, some[: 2 * few], own)
        yield from million_rows(zh, en, int(MILLION * scale), folder)
