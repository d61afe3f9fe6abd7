"""What the engine raises when the user's input is wrong. Every floor may import this file.

A message is one line: what is wrong, where (file, key or record), and what to do. Tools print it after `error: ` and
exit with code 2 (mindllm_engine/command_line.py); anything else that is raised is a bug in the engine and shows its
traceback.
"""


class MindLLMError(Exception):
    """A mistake in what the user gave, or a machine that cannot do what was asked (a full disk)."""


class ConfigError(MindLLMError):
    """A configuration with an unknown key, a wrong type or an impossible combination."""


class DataError(MindLLMError):
    """A text file, tokenizer or token file that is missing, damaged or does not match the others."""


class CheckpointError(MindLLMError):
    """A checkpoint that cannot be written, is damaged, or belongs to another model or plan."""


class DivergedError(MindLLMError):
    """Training has lost its weights: no checkpoint to go back to helps."""


class OtherRankError(MindLLMError):
    """This rank is sound, and ends because another one has failed, which tells why itself."""
