"""Continue a prompt with a trained network: `python tools/generate.py --run runs/demo --prompt "Once upon a time"`."""

from dataclasses import dataclass

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.evaluation.generation import TextStream, generate
from mindllm_engine.training.weights import load_model_for_inference


@dataclass
class GenerateArguments:
    """Print a prompt and its continuation, as it comes."""

    run: str
    """The run folder."""
    prompt: str = ""
    """The text to continue; empty starts a document."""
    max_new_tokens: int = 200
    """Stop after so many tokens, if the document has not ended."""
    temperature: float = 0.7
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that reach this probability together."""
    seed: int = 0
    """The same seed gives the same text."""


def main() -> None:
    """Load a run's network and tokenizer, and stream the continuation of the prompt."""
    arguments = parse_arguments(GenerateArguments, "Continue a prompt with the newest network of a run folder.")
    model, tokenizer = load_model_for_inference(arguments.run)
    tokens = generate(
        model,
        [tokenizer.bos_id, *tokenizer.encode(arguments.prompt)],
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        eos_id=tokenizer.eos_id,
        seed=arguments.seed,
        vocab_size=tokenizer.vocab_size,
    )
    stream = TextStream(tokenizer.decode)
    print(arguments.prompt, end="", flush=True)
    for token in tokens:
        print(stream.add(token), end="", flush=True)
    print(stream.finish())


if __name__ == "__main__":
    run_tool(main)
