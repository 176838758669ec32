"""Make a tiny random Qwen3 model that vLLM can serve: `python -m cria.demo.tiny_model DIR [HIDDEN]`."""

from __future__ import annotations

import sys

HIDDEN, LAYERS, VOCABULARY, CONTEXT = 256, 4, 512, 2048
END = "<|endoftext|>"


def make(directory: str, *, hidden: int = HIDDEN, seed: int = 0) -> None:
    """Write a config, random weights (10 MB, the same for the same seed) and a byte-level tokenizer."""
    # Imported here: `python -m cria.demo.tiny_model` runs this where vLLM is, and cria itself has no torch.
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["an engine is frozen here and wakes up there"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END
    ).save_pretrained(directory)

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        # With the usual 0.02 every token repeats the last. With 1 each token differs, and no choice is a close call.
        initializer_range=1.0,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)


if __name__ == "__main__":
    make(sys.argv[1], hidden=int(sys.argv[2]) if sys.argv[2:] else HIDDEN)
