"""The special tokens of the corpus and of chats, which tokenizers that are trained with `special_tokens` have: the
first five are found in text and kept whole, those of chats are never read from text.

`steps/personal_data.py` writes the first five in place of what it removes; tuning puts the turns of a chat between the
others. A text that holds one of them from the beginning is not changed.
"""

ID_NUMBER = "<|id_number|>"
PHONE = "<|phone|>"
BANK_CARD = "<|bank_card|>"
EMAIL = "<|email|>"
IP = "<|ip|>"

SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"

# In the order of csrc/personal_data.hpp's kinds.
PERSONAL_DATA_TOKENS = (ID_NUMBER, PHONE, BANK_CARD, EMAIL, IP)
CHAT_TOKENS = (SYSTEM, USER, ASSISTANT, END)
SPECIAL_TOKENS = PERSONAL_DATA_TOKENS + CHAT_TOKENS
