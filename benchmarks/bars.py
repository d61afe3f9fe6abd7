"""What the kernels are held to on a GPU, and whether a run's rows hold it."""

from statistics import median
from typing import Any

from benchmarks.results_files import Ceilings, Measurement

# (operator, mode, least share of the copy bandwidth), in bf16 at BAR_TOKENS tokens of the 3B network.
BAR_TOKENS, BAR_SHAPE = 16384, "3B"
ROW_WISE = ("rms_norm", "deepnorm_residual", "geglu", "rotary", "embedding_norm")
COPY_BARS = (
    *((operator, "forward", 0.92) for operator in ROW_WISE),
    *((operator, "backward", 0.88) for operator in ROW_WISE),
    ("adamw", "forward", 0.92),
)
# Against the best peer: the median over an operator's shapes and directions, and every one of them.
PEER_MEDIAN, PEER_EACH = 1.0, 0.97
# The fused projection and loss: share of the speed of three bare products, memory as a share of the logits, and Liger.
PRODUCTS_BAR, LOGITS_BAR, LIGER_BAR = 0.9, 0.05, 5.0
LOSS = "linear_cross_entropy"
# The same as training runs it, with dweight added to the main gradient: what its speed and memory are judged by.
LOSS_IN_TRAINING = "linear_cross_entropy_main_grad"
BF16_BYTES = 2
PRODUCTS = "three bare GEMMs"

Row = dict[str, Any]


def bars(rows: list[Measurement], ceilings: Ceilings, operators: list[str], measured: bool, vocab: int) -> list[Row]:
    """Every bar by name: figures where a GPU measured them, otherwise null and the reason."""
    found = [copy_bar(rows, ceilings, *bar) for bar in COPY_BARS]
    found += [peer_bar(rows, operator) for operator in operators]
    found += loss_bars(rows, vocab)
    return found if measured else [{**row, **unmeasured("no GPU")} for row in found]


def unmeasured(reason: str) -> Row:
    """The figures of a bar that nothing was measured for."""
    return {"ours": None, "peer": None, "ratio": None, "holds": None, "reason": reason}


def bar_row(name: str, unit: str, peer_name: str, bar: float) -> Row:
    return {"name": name, "unit": unit, "peer_name": peer_name, "bar": bar, **unmeasured("not in this run")}


def copy_bar(rows: list[Measurement], ceilings: Ceilings, operator: str, mode: str, bar: float) -> Row:
    """Bytes a second of an operator beside those of a copy."""
    name = f"{operator} {mode}, {BAR_TOKENS} tokens of {BAR_SHAPE}, bf16"
    row = bar_row(name, "GB/s", "device-to-device copy", bar)
    for candidate in rows:
        place = (candidate.operator, candidate.mode, candidate.shape.split()[0], candidate.tokens)
        if candidate.provider == "ours" and place == (operator, mode, BAR_SHAPE, BAR_TOKENS):
            rate = candidate.bytes_per_second
            if rate is None:
                return {**row, "reason": candidate.note}
            return filled(row, rate / 1e9, ceilings.copy / 1e9, rate / ceilings.copy)
    return row


def filled(row: Row, ours: float, peer: float, ratio: float) -> Row:
    """A bar with its figures."""
    values = {"ours": ours, "peer": peer, "ratio": ratio, "holds": ratio >= row["bar"], "reason": None}
    return {**row, **values}


def compared(rows: list[Measurement], operator: str) -> list[tuple[Measurement, Measurement]]:
    """(ours, the fastest peer) wherever both were measured."""
    pairs = []
    for ours in rows:
        if ours.operator != operator or ours.provider != "ours" or ours.seconds is None:
            continue
        place = (ours.shape, ours.tokens, ours.mode)
        peers = [
            row
            for row in rows
            if row.operator == operator
            and (row.shape, row.tokens, row.mode) == place
            and row.provider != "ours"
            and row.seconds is not None
            and not row.bound
        ]
        if peers:
            pairs.append((ours, min(peers, key=seconds_of)))
    return pairs


def seconds_of(row: Measurement) -> float:
    return row.seconds.median if row.seconds else float("inf")


def ratio_of(pair: tuple[Measurement, Measurement]) -> float:
    """How many times faster ours is."""
    return seconds_of(pair[1]) / max(seconds_of(pair[0]), 1e-12)


def peer_bar(rows: list[Measurement], operator: str) -> Row:
    """Ours beside the best peer over all shapes: the median, and the worst in its note."""
    row = bar_row(f"{operator} beside the best peer of each shape", "ratio", "best peer", PEER_MEDIAN)
    pairs = compared(rows, operator)
    if not pairs:
        return row
    worst = min(pairs, key=ratio_of)
    middle, least = median(map(ratio_of, pairs)), ratio_of(worst)
    place = f"{worst[0].shape}, {worst[0].tokens} tokens, {worst[0].mode}, {worst[1].provider}"
    holds = middle >= PEER_MEDIAN and least >= PEER_EACH
    note = f"worst of {len(pairs)}: {least:.3f} ({place}); none may be under {PEER_EACH}"
    return {**row, "ours": middle, "peer": 1.0, "ratio": middle, "holds": holds, "reason": note}


def loss_bars(rows: list[Measurement], vocab: int) -> list[Row]:
    """The three bars of the fused projection and cross-entropy."""
    place = f"{BAR_TOKENS} tokens of {BAR_SHAPE}"
    products = bar_row(f"{LOSS_IN_TRAINING}, {place}: speed", "ms", PRODUCTS, PRODUCTS_BAR)
    memory = bar_row(
        f"{LOSS_IN_TRAINING}, {place}: memory as a share of the logits at most", "MB", "logits", LOGITS_BAR
    )
    liger = bar_row(f"{LOSS}, {place}: speed", "ms", "liger", LIGER_BAR)
    measured = {
        (row.operator, row.provider): row
        for row in rows
        if (row.shape, row.tokens, row.mode) == (BAR_SHAPE, BAR_TOKENS, "full") and row.seconds
    }
    for bar, operator, provider in ((products, LOSS_IN_TRAINING, PRODUCTS), (liger, LOSS, "liger")):
        ours, peer = measured.get((operator, "ours")), measured.get((operator, provider))
        if ours and peer:
            bar.update(filled(bar, 1e3 * seconds_of(ours), 1e3 * seconds_of(peer), ratio_of((ours, peer))))
        elif ours:
            bar["reason"] = f"{provider} was not measured"
    ours = measured.get((LOSS_IN_TRAINING, "ours"))
    if ours and ours.memory is not None:
        logits = BAR_TOKENS * vocab * BF16_BYTES
        share = ours.memory / logits
        memory.update(filled(memory, ours.memory / 2**20, logits / 2**20, share))
        memory["holds"] = share <= LOGITS_BAR
    return [products, memory, liger]
