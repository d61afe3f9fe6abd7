"""The special tokens of cleaned text and of conversations, for the corpus steps and the tokenizers.

Personal data in a text is replaced by the first five (mindllm_engine/corpus/steps/personal_data.py), and a tokenizer
that is made with special tokens encodes each as one id wherever it stands. The chat tokens are never encoded from text,
whoever typed it: a chat template asks for their ids (`Tokenizer.special_id`), so nobody can forge a turn.
"""

ID_NUMBER = "<|id_number|>"
PHONE = "<|phone|>"
BANK_CARD = "<|bank_card|>"
EMAIL = "<|email|>"
IP = "<|ip|>"
PERSONAL_DATA_TOKENS = (ID_NUMBER, PHONE, BANK_CARD, EMAIL, IP)

SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
CHAT_TOKENS = (SYSTEM, USER, ASSISTANT, END)
