"""Texts on which tokenizers disagree, from a seed."""

import random

FRAGMENTS = [
    "the quick brown", "图书馆", "，", "。\n", "\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t\t", "\t" * 9,
    " ", "   ", " " * 17, "\u3000", "\u00a0", "\u2009", "1842", "3.14159", "٣", "Ⅷ",
    "😀", "👩‍👩‍👧", "🇨🇳", "é", "e\u0301", "\u0301", "\u0e33",
    "ﬁ", "①", "Ａ", "\u2581", "\u2581\u2581 \u2581", " \u2581", "\u2585", "\0", "\x01\x1b", "\x7f", "\u0085", "\u200b",
    "\u200d", "\ufeff", "\u2028", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\ufdd0 ", "𠀀", "𪚥", "㐂", "龘",
    "<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>", "<|us",
    "er|>", "<|phone|>", "<|email|>", "<|id_number|>", "<0x0A>", "<0xE2>", "[INST]", "Ġ", "Ċ", "Ã©", "##ing",
    "a" * 300, "哈" * 90,
    "def f(x):\n    return x\n", "{'a': [1, 2]}", "don't", "I'LL", "https://example.org/?q=%20", "¿Qué?",
    "Привет", "العربية",
    "한국어", "ひらがな", "\u202eabc", "x\u20e3", "--------", "......", "!!!???",
]  # fmt: skip


def hard_strings(count: int, seed: int = 0) -> list[str]:
    """The fragments alone, then mixtures of them with random code points and bytes read as Latin-1."""
    generator = random.Random(seed)
    texts = ["", *FRAGMENTS]
    while len(texts) < count:
        parts = []
        for _ in range(generator.randint(1, 8)):
            kind = generator.random()
            if kind < 0.7:
                parts.append(generator.choice(FRAGMENTS))
            elif kind < 0.8:
                parts.append("".join(chr(_code_point(generator)) for _ in range(generator.randint(1, 6))))
            elif kind < 0.9:
                parts.append(generator.randbytes(generator.randint(1, 12)).decode("latin-1"))
            else:
                parts.append(generator.choice(" \t\na-=。") * generator.randint(1, 20))
        texts.append("".join(parts))
    return texts


def _code_point(generator: random.Random) -> int:
    """Any but surrogates, small ones more often."""
    point = generator.randrange(generator.choice((0x250, 0x3000, 0xA000, 0x30000, 0x110000)))
    return 0x4E2D if 0xD800 <= point < 0xE000 else point
